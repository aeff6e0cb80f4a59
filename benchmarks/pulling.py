"""Time and memory that a pull to the base adds to a training step, beside those of a freeze of 1%,
of a Llama in one process, as in the two sections before. The first figure is 1 + the time of its
own work after the optimizer's step (and of a freeze's masks and guard), timed by itself, over that
of a step with neither; the second is the ratio of whole steps that take turns. Memory is what the
process holds more than before, less what one that neither freezes nor pulls does: bytes for each
weight of the model, between steps, at the peak of a step and at the optimizer's.

The ways are those of :mod:`.freezing_ways`, the work by itself is :mod:`.freezing_added`'s, memory
is :mod:`.freezing_memory`'s.
"""

from functools import partial

from benchmarks import freezing, freezing_memory
from benchmarks.freezing_added import added, totals
from benchmarks.freezing_memory import MOMENTS
from benchmarks.freezing_ways import (
    MAIN,
    NONE,
    PULLS,
    Way,
    adamw,
    ids_of,
    llama,
    step,
    twins,
)
from benchmarks.harness import Options, Results, Row, alternate, ratios, shown, spread

TITLE = "Pull to the base: time and memory"
WAYS = (NONE, MAIN, *PULLS)


def measure(options: Options) -> Results:
    """Time on the model of :mod:`.freezing`, memory on that of :mod:`.freezing_memory`."""
    device = options.device
    timed = measured(device, options.rounds, freezing.LLAMA[device], freezing.BATCH[device])
    held = freezing_memory.measured(
        device, freezing_memory.LLAMA[device], freezing_memory.BATCH[device], (MAIN, *PULLS)
    )
    return {"time": timed, "memory": held}


def measured(device: str, rounds: int, sizes: dict[str, int], batch: tuple[int, int]) -> Results:
    """Seconds of whole steps and of each way's own work, of a Llama of ``sizes``."""
    model = llama(device, **sizes)
    optimizer = adamw(model)
    batches = ids_of(model, 1, batch)
    step(Way(model, optimizer), batches)
    optimizer.zero_grad()
    ways = twins(WAYS, model, optimizer)
    whole = alternate(
        {name: partial(step, way, batches) for name, way in ways.items()},
        rounds,
        device=device,
        before=lambda: [way.optimizer.zero_grad() for way in ways.values()],
    )
    step(ways[NONE], batches)
    gradients = [parameter.grad for parameter in ways[NONE].model.parameters()]
    alone = added(ways, gradients, rounds, device)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "batch": list(batch),
        "whole": whole,
        "ratios": ratios(whole, NONE),
        "own": totals(alone, 1),
        "optimizer": alone["seconds"][NONE]["optimizer"],
    }


def rows(figures: Results) -> list[Row]:
    """The plain step first, then each way's time and its memory."""
    timed, held = figures["time"], figures["memory"]
    plain, optimizer = spread(timed["whole"][NONE]), spread(timed["optimizer"])
    count, length = timed["batch"]
    size = f"{timed['parameters'] / 1e6:,.0f}M parameters"
    first = f"{shown(plain)} s, of which AdamW {optimizer['median'] * 1e3:.1f} ms"
    return [
        Row(f"a step with neither: {size}, {count} × {length} tokens", first),
        *(_time_row(timed, name) for name in WAYS if name != NONE),
        *(_memory_row(held, name) for name in held["ways"]),
    ]


def _time_row(timed: Results, name: str) -> Row:
    own, plain = spread(timed["own"][name]), spread(timed["whole"][NONE])["median"]
    spent = shown({key: value * 1e3 for key, value in own.items()}, 1)
    share = f"{1 + own['median'] / plain:.4f}: {spent} ms"
    by_optimizer = own["median"] / spread(timed["optimizer"])["median"]
    whole = shown(timed["ratios"][name])
    return Row(name, f"{share}, {by_optimizer:.2f} of AdamW's step; whole steps {whole}")


def _memory_row(held: Results, name: str) -> Row:
    weights = held["ways"][name]["parameters"]
    noise = max(held["noise"].values()) / weights
    per = ", ".join(
        f"{held['added'][name][moment] / weights:.2f} {when}" for moment, when in MOMENTS.items()
    )
    return Row(f"{name}: memory", f"bytes a weight: {per} (± {noise:.2f})")
