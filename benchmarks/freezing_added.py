"""What freezing adds to a step, timed by itself, and what no way of freezing can do without.

Against a step of a second the noise of which is a percent, a millisecond cannot be seen. So the
hooks that a way has registered are called here as a step calls them, on gradients that a backward
pass has left, with the optimizer's own work between those before and those after it, untimed. All
of them come from memory that other work has passed through since, at worst colder than in training,
where a gradient is masked as soon as it is computed. :func:`profiled` shows where the time of one
whole step goes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.optim import AdamW
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.freezing_ways import AUDITED, MAIN, NONE, Way, adamw, matrices, step, touched, twins
from benchmarks.harness import Results, alternate, finish, ratios, spread

LINES = {"cpu": 64, "cuda": 32}
"""Bytes that memory moves at a time."""
STREAM = "stream"
ACCUMULATIONS = (1, 16)


class Clock:
    """Seconds by part, each turn by itself."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.turns: list[dict[str, float]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        finish(self.device)
        start = perf_counter()
        yield
        finish(self.device)
        turn = self.turns[-1]
        turn[name] = turn.get(name, 0.0) + perf_counter() - start

    def seconds(self, name: str) -> list[float]:
        """Of all turns but the first, which is not counted."""
        return [turn[name] for turn in self.turns[1:]]


def mask(parameters: Iterable[nn.Parameter]) -> None:
    """Call, on the gradients that are there, the hooks that backward() calls."""
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        for hook in (parameter._backward_hooks or {}).values():
            given = hook(gradient)
            gradient = gradient if given is None else given
        for after in getattr(parameter, "_post_accumulate_grad_hooks", None) or {}:
            parameter._post_accumulate_grad_hooks[after](parameter)


def turn(way: Way, clock: Clock) -> None:
    """What a step of ``way`` does after its backward pass, part by part."""
    optimizer = way.optimizer
    clock.turns.append({})
    with clock.part("mask"):
        mask(way.model.parameters())
    with clock.part("guard"):
        for hook in list(optimizer._optimizer_step_pre_hooks.values()):
            hook(optimizer, (optimizer,), {})
    with clock.part("optimizer"):
        bare: Any = AdamW.step.__wrapped__  # the step without its hooks
        bare(optimizer)
    with clock.part("guard"):
        for hook in list(optimizer._optimizer_step_post_hooks.values()):
            hook(optimizer, (optimizer,), {})
    with clock.part("after"):
        way.after()


def added(
    ways: Mapping[str, Way], gradients: Sequence[Tensor], rounds: int, device: str
) -> Results:
    """Seconds of each part of each way, and of a pass over the matrices, in each round.

    All ways take turns with the same ``gradients``, one for each parameter of the model.
    """
    model = ways[NONE].model
    weights = [model.get_parameter(name).detach() for name in matrices(model)]
    for way in ways.values():
        for parameter, gradient in zip(way.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
    clocks = {name: Clock(device) for name in ways}

    def stream() -> None:
        for weight in weights:
            weight.mul_(1.0)

    turns: dict[str, Callable[[], object]] = {
        name: partial(turn, way, clocks[name]) for name, way in ways.items()
    }
    passes = alternate({**turns, STREAM: stream}, rounds, device=device)[STREAM]
    moved = 2 * sum(weight.nbytes for weight in weights)
    parts = ("mask", "guard", "optimizer", "after")
    item, line = weights[0].element_size(), LINES[device]
    return {
        "entries": sum(weight.numel() for weight in weights),
        "frozen": {name: way.count for name, way in ways.items()},
        "seconds": {n: {p: clock.seconds(p) for p in parts} for n, clock in clocks.items()},
        "bytes_per_second": spread([moved / seconds for seconds in passes]),
        "floor": {
            name: touched(way.handle.region, item, line)
            for name, way in ways.items()
            if way.handle is not None and name != AUDITED
        },
        "lines": sum(weight.nbytes for weight in weights) // line,
    }


def tensors(count: int, width: int, names: Sequence[str], rounds: int, device: str) -> Results:
    """:func:`added` for ``count`` matrices of ``width`` by ``width``, without a model around."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    model = nn.Module()
    model.layers = nn.ParameterList(
        torch.randn(width, width, dtype=dtype, device=device) for _ in range(count)
    )
    gradients = [torch.randn_like(parameter) for parameter in model.parameters()]
    optimizer = adamw(model)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    figures = added(twins(names, model, optimizer), gradients, rounds, device)
    return {"count": count, "width": width, **figures}


def totals(figures: Results, accumulation: int) -> dict[str, list[float]]:
    """Seconds that each way adds to a step of so many micro-steps, by round."""
    return {
        name: [
            accumulation * (mask + after) + guard
            for mask, after, guard in zip(
                parts["mask"], parts["after"], parts["guard"], strict=True
            )
        ]
        for name, parts in figures["seconds"].items()
    }


def summary(figures: Results) -> Results:
    """Medians and quartiles of what :func:`added` found."""
    result: Results = {}
    for accumulation in ACCUMULATIONS:
        totals_of_way = totals(figures, accumulation)
        result[f"{accumulation}"] = {
            "seconds": {name: spread(values) for name, values in totals_of_way.items()},
            f"by {MAIN}": ratios(totals_of_way, MAIN),
        }
    optimizer = figures["seconds"][NONE]["optimizer"]
    result["optimizer"] = spread(optimizer)
    result["by optimizer"] = ratios({**totals(figures, 1), "optimizer": optimizer}, "optimizer")
    speed = figures["bytes_per_second"]["median"]
    result["floor"] = {name: floor["bytes"] / speed for name, floor in figures["floor"].items()}
    return result


FREEZING = "freezetrain"
"""Name of the ranges around what freezing does, in the trace too."""


@contextmanager
def ranges(way: Way) -> Iterator[None]:
    """Meanwhile, each hook of ``way`` runs in a range of the profiler."""
    optimizer: Any = way.optimizer
    tables = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    for parameter in way.model.parameters():
        tables += [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    known = [(table, dict(table)) for table in tables if table]
    for table, hooks in known:
        table.update({key: _in_range(hook) for key, hook in hooks.items()})
    try:
        yield
    finally:
        for table, hooks in known:
            table.update(hooks)


def _in_range(hook: Callable[..., object]) -> Callable[..., object]:
    def ranged(*args: object) -> object:
        with record_function(FREEZING):
            return hook(*args)

    return ranged


def profiled(
    way: Way, batches: Sequence[Tensor], device: str, trace: Path | None = None, top: int = 10
) -> Results:
    """Seconds of one step: of all kernels of a GPU, or of operators on a CPU, and of freezing's.

    With the ``top`` kernels or operators by their own time. ``trace``: where to write the trace,
    which chrome://tracing and Perfetto show.
    """
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with ranges(way), profile(activities=activities) as figures:
        step(way, batches)
        finish(device)
    if trace is not None:
        trace.parent.mkdir(exist_ok=True)
        figures.export_chrome_trace(str(trace))
    by_name: dict[str, float] = {}
    freezing = 0.0
    for event in figures.events():
        if event.device_type != DeviceType.CPU:
            continue  # kernels are counted with the operators that queued them
        if event.name == FREEZING:
            freezing += event.device_time_total if cuda else event.cpu_time_total
        spent = [(kernel.name, kernel.duration) for kernel in event.kernels]
        for name, time in spent if cuda else [(event.name, event.self_cpu_time_total)]:
            by_name[name] = by_name.get(name, 0.0) + time
    largest = sorted(by_name, key=by_name.__getitem__, reverse=True)[:top]
    return {
        "all": sum(by_name.values()) / 1e6,
        "freezing": freezing / 1e6,
        "top": {name: by_name[name] / 1e6 for name in largest},
    }
