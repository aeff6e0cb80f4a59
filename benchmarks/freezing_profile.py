"""Where the time of one step goes, by torch's profiler."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.freezing_ways import Way, step
from benchmarks.harness import Found, finish

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
) -> Found:
    """Seconds of one step: of all kernels of a GPU, or of operators on a CPU, and of freezing's.

    With the ``top`` kernels or operators by their own time. ``trace``: where to write the trace,
    which chrome://tracing and Perfetto show.
    """
    cuda = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with ranges(way), profile(activities=activities) as found:
        step(way, batches)
        finish(device)
    if trace is not None:
        trace.parent.mkdir(exist_ok=True)
        found.export_chrome_trace(str(trace))
    by_name: dict[str, float] = {}
    freezing = 0.0
    for event in found.events():
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
