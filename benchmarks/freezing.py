"""Time that freezing adds to a training step (zero_grad, forward, backward, clipping, fused AdamW
with decay) of a Llama in one process. The first figure is 1 + the time of the freeze's own work,
timed by itself, over that of a step without freezing; with 16 micro-steps that is 16 times the
masks' work and once the guard's. The second is the ratio of whole steps that take turns, as noisy
as steps are. The floor is what must pass through memory at all, at the speed at which one pass over
the same matrices reads and writes them.

Whole steps are those of :mod:`.freezing_ways`, the work by itself is :mod:`.freezing_added`'s.
"""

import gc
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops

from benchmarks.freezing_added import added, profiled, summary, tensors
from benchmarks.freezing_ways import (
    AUDITED,
    COMPETITORS,
    MAIN,
    NONE,
    REGIONS,
    RESTORE,
    WAYS,
    Way,
    adamw,
    ids_of,
    llama,
    step,
    twins,
)
from benchmarks.harness import Options, Results, Row, alternate, ratios, shown, spread
from freezetrain.callbacks.throughput import flops_per_token

TITLE = "Freezing: time"
LLAMA = {
    "cpu": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 5,
    },
    "cuda": {
        "vocab_size": 32000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
    },
}
BATCH = {"cpu": (4, 512), "cuda": (4, 2048)}
"""Sequences and their length; with 16 micro-steps, one sequence each."""
LONG = (NONE, MAIN, RESTORE)
"""Ways that take turns with whole steps of 16 micro-steps too."""
TRACE = Path(__file__).parent / "results" / "freezing_trace.json.gz"


def measure(options: Options) -> Results:
    """On the model and on eight matrices as large as those of a model of 7B."""
    return measured(options.device, options.rounds, LLAMA[options.device], BATCH[options.device])


def measured(
    device: str,
    rounds: int,
    sizes: dict[str, int],
    batch: tuple[int, int],
    width: int = 4096,
    long_rounds: int = 3,
    trace: Path | None = TRACE,
) -> Results:
    """Of a Llama of ``sizes`` with batches [sequences, length], and of matrices of ``width``."""
    figures = _on_model(device, rounds, sizes, batch, long_rounds, trace)
    gc.collect()  # hooks and what they belong to hold each other
    alone = tensors(8, width, [name for name in WAYS if name != AUDITED], rounds, device)
    return {**figures, "tensors": {**alone, "summary": summary(alone)}}


def _on_model(
    device: str,
    rounds: int,
    sizes: dict[str, int],
    batch: tuple[int, int],
    long_rounds: int,
    trace: Path | None,
) -> Results:
    model = llama(device, **sizes)
    optimizer = adamw(model)
    batches = ids_of(model, 1, batch)
    step(Way(model, optimizer), batches)
    optimizer.zero_grad()
    ways = twins(WAYS, model, optimizer)

    def whole(names: Sequence[str], count: int, shape: tuple[int, int], turns: int) -> Results:
        batches = ids_of(model, count, shape)
        seconds = alternate(
            {name: partial(step, ways[name], batches) for name in names},
            turns,
            device=device,
            # A twin's gradients would be memory that the others have not.
            before=lambda: [way.optimizer.zero_grad() for way in ways.values()],
        )
        return {"batch": [count, *shape], "seconds": seconds, "ratios": ratios(seconds, NONE)}

    figures: Results = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "whole": {
            "1": whole(WAYS, 1, batch, rounds),
            "16": whole(LONG, 16, (1, batch[1]), long_rounds),
        },
    }
    step(ways[NONE], batches)
    gradients = [parameter.grad for parameter in ways[NONE].model.parameters()]
    figures["added"] = added(ways, gradients, rounds, device)
    figures["added"]["summary"] = summary(figures["added"])
    if device == "cuda":
        figures["gpu"] = _gpu(ways, batches, figures, trace)
    return figures


def _gpu(
    ways: dict[str, Way], batches: Sequence[Any], figures: Results, trace: Path | None
) -> Results:
    """Utilization, by the fastest of what the device is said to reach, and one step's profile."""
    model, tokens = ways[NONE].model, batches[0].numel()
    flops = flops_per_token(model, batches[0].shape[1])
    peak = get_available_flops(torch.device("cuda"), torch.bfloat16)
    rates = {
        name: tokens / spread(figures["whole"]["1"]["seconds"][name])["median"]
        for name in (NONE, MAIN)
    }
    return {
        "tokens_per_second": rates,
        "utilization": {
            name: None if flops is None or peak is None else rate * flops / peak
            for name, rate in rates.items()
        },
        "profile": profiled(ways[MAIN], batches, "cuda", trace),
    }


def rows(figures: Results) -> list[Row]:
    """The model first, then the eight matrices."""
    count, length = figures["whole"]["1"]["batch"][1:]
    plain = spread(figures["whole"]["1"]["seconds"][NONE])
    size = f"{figures['parameters'] / 1e6:,.0f}M parameters"
    alone = figures["tensors"]
    where = f"{alone['count']} matrices of {alone['width']}²: "
    return [
        Row(f"a step without freezing: {size}, {count} × {length} tokens", f"{shown(plain)} s"),
        *(_region_row(figures, name) for name in REGIONS),
        _audit_row(figures),
        *(_way_row(figures, name, "1") for name in COMPETITORS),
        *(_way_row(figures, name, "16") for name in (MAIN, *COMPETITORS)),
        *_against_rows(figures["added"], ""),
        *(_gpu_rows(figures["gpu"]) if "gpu" in figures else []),
        Row(f"{where}a step of AdamW", _ms(alone["summary"]["optimizer"])),
        *(_alone_row(alone, name, where) for name in (*REGIONS, *COMPETITORS)),
        *_against_rows(alone, where),
    ]


def _share(figures: Results, name: str, accumulation: str) -> float:
    """A step with the freeze's own work by one without."""
    plain = spread(figures["whole"][accumulation]["seconds"][NONE])["median"]
    spent = figures["added"]["summary"][accumulation]["seconds"][name]["median"]
    return 1 + spent / plain


def _way_row(figures: Results, name: str, accumulation: str) -> Row:
    spent = figures["added"]["summary"][accumulation]["seconds"][name]
    figure = f"{_share(figures, name, accumulation):.4f}: {_ms(spent)}"
    whole = figures["whole"][accumulation]["ratios"]
    if name in whole:
        figure += f"; whole steps {shown(whole[name])}"
    if accumulation == "1":
        return Row(name, figure + _times_floor(figures["added"], name))
    count = figures["whole"][accumulation]["batch"][0]
    return Row(f"{name}, {count} micro-steps", figure)


def _times_floor(own_work: Results, name: str) -> str:
    """How far from the time of the bytes that must move."""
    if name not in own_work["floor"]:
        return ""
    times = own_work["summary"]["1"]["seconds"][name]["median"] / own_work["summary"]["floor"][name]
    return f"; {times:.1f} times the floor"


def _region_row(figures: Results, name: str) -> Row:
    """Missed by the freeze's own time, or where whole steps are beyond it for all their noise."""
    most = 1.01 if name == MAIN else 1.03
    share, whole = _share(figures, name, "1"), figures["whole"]["1"]["ratios"][name]
    notes = []
    if share > most:
        parts = figures["added"]["seconds"][name]
        mask, guard = (spread(parts[part])["median"] * 1e3 for part in ("mask", "guard"))
        floor = figures["added"]["summary"]["floor"][name] * 1e3
        notes.append(
            f"masks take {mask:.1f} ms and the guard {guard:.1f}, where the bytes that must move "
            f"take {floor:.1f}"
        )
    if whole["low"] > most:
        notes.append("whole steps were slower than that in three of four rounds")
    row = _way_row(figures, name, "1")
    return row._replace(goal=f"at most {most}", met=not notes, note="; ".join(notes))


def _audit_row(figures: Results) -> Row:
    own_work = figures["added"]["summary"]["1"]["seconds"]
    audit = own_work[AUDITED]["median"] - own_work[MAIN]["median"]
    plain = spread(figures["whole"]["1"]["seconds"][NONE])["median"]
    row = _way_row(figures, AUDITED, "1")
    each = f"; an audit takes {audit * 1e3:.1f} ms, one in 100 steps {audit / plain / 100:.4%}"
    return row._replace(figure=f"{row.figure}{each} of the time")


def _against_rows(own_work: Results, where: str) -> list[Row]:
    """Freezing 1%, against the competitors and against the optimizer."""
    result = []
    for name in COMPETITORS:
        once, often = (own_work["summary"][number][f"by {MAIN}"][name] for number in ("1", "16"))
        figure = f"{shown(once, 1)} times; 16 micro-steps: {shown(often, 1)}"
        row = Row(f"{where}{name}, by freezetrain's time", figure)
        if name == RESTORE:
            spent = own_work["summary"]["1"]["seconds"][name]["median"]
            met, most = once["median"] >= 20, spent / own_work["summary"]["floor"][MAIN]
            note = f"at the floor of 1% it would be {most:.0f} times"
            note = "" if met else note
            row = row._replace(goal="at least 20", met=met, note=note)
        result.append(row)
    share = own_work["summary"]["by optimizer"][MAIN]
    least = own_work["summary"]["floor"][MAIN] / own_work["summary"]["optimizer"]["median"]
    met = share["median"] <= 0.01
    note = "" if met else f"the bytes that must move take {least:.3f} of it"
    what = f"{where}{MAIN}, by a step of AdamW"
    return [*result, Row(what, shown(share), "at most about 0.01", met, note)]


def _alone_row(alone: Results, name: str, where: str) -> Row:
    parts = {part: spread(seconds)["median"] for part, seconds in alone["seconds"][name].items()}
    part_names = {"mask": "masks", "guard": "guard", "after": "after the step"}
    pieces = ", ".join(
        f"{part_names[p]} {parts[p] * 1e3:.1f}" for p in part_names if parts[p] > 1e-4
    )
    figure = f"{_ms(alone['summary']['1']['seconds'][name])}: {pieces}"
    return Row(f"{where}{name}", figure + _times_floor(alone, name))


def _gpu_rows(gpu: Results) -> list[Row]:
    result = []
    for name, rate in gpu["tokens_per_second"].items():
        used = gpu["utilization"][name]
        share = "unknown" if used is None else f"{used:.1%}"
        result.append(Row(name, f"{rate:,.0f} tokens/s, model FLOPs utilization {share}"))
    profile = gpu["profile"]
    share = profile["freezing"] / profile["all"]
    figure = f"{profile['freezing'] * 1e3:.2f} of {profile['all'] * 1e3:.1f} ms: {share:.2%}"
    return [*result, Row(f"kernels of {MAIN} in one step's trace", figure)]


def _ms(seconds: dict[str, float]) -> str:
    return f"{shown({key: value * 1e3 for key, value in seconds.items()}, 1)} ms"
