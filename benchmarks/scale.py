"""What freezing costs each GPU at 7B on 8 and 70B on 64 of them, by the arithmetic of
cost_model.py; beside it the paper's restore. The arithmetic is checked against real freezes of a
small model on 1, 2 and 4 CPU processes: its bytes; and its seconds, by the bandwidth that they
had, beside those that hooks and calls take with hardly any entry frozen. GB are those that a freeze
holds on each GPU at rest, beside those of training.

Every assumption is a named field of cost_model.py. The seconds of the GPUs rest on the data
sheet's bandwidth and on assumed shares of it; with ``--device cuda`` they rest on the bandwidth
measured on the GPU at hand. The ranks of the check run this module: real freezes on real engines of
a small model, beside the memory bandwidth that this many processes have at the same time.
"""

import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from benchmarks.cost_model import (
    H100,
    SHAPES,
    Cost,
    Frozen,
    Machine,
    Shape,
    Training,
    freeze_cost,
    micro_steps,
    restore_cost,
)
from benchmarks.engines import (
    Size,
    held_bytes,
    make_engine,
    make_model,
    make_region,
    on_ranks,
    train,
)
from benchmarks.harness import Options, Results, Row, finish
from freezetrain.freezing import freeze

TITLE = "Scale, on paper"

REGIONS = {
    "1% of entries": Frozen("entries", 0.01),
    "5% of entries": Frozen("entries", 0.05),
    "50% of columns": Frozen("columns", 0.5),
}
GOAL = "1% of entries"
FEW = "hardly any entry"  # of the checking runs: what does not depend on the number of entries
RESTORE = "restore"
# LLaMA-2's batch and context (arXiv 2307.09288, table 1), of 7B two sequences at a time; and the
# setting of the paper that restores (arXiv 2402.14700).
BATCH, CONTEXT = 2**22, 4096
PAPER = {"tokens": 2 * 512, "micro_steps": 16}
# Name → model, ranks, sequences of a micro-step, engines.
MODELS = {
    "7B on 8": ("7B", 8, 2, ("DDP", "ZeRO-2", "ZeRO-3")),
    "70B on 64": ("70B", 64, 1, ("ZeRO-2", "ZeRO-3")),
}
# Of the checking runs, in fp32: few tokens, as masks and guards do not depend on them.
SMALL: Size = {
    "hidden": 512, "inner": 1376, "layers": 4, "rows": 1024, "tokens": 16, "dtype": "float32",
}  # fmt: skip
WORLDS = {1: ["DDP"], 2: ["DDP", "ZeRO-2", "ZeRO-3"], 4: ["DDP", "ZeRO-2", "ZeRO-3"]}
LINE = 64  # bytes of a CPU's cache line


def measure(options: Options) -> Results:
    """The table of the large models, and the runs on processes of this machine that check it."""
    machine = H100
    if options.device == "cuda":
        measured = bandwidths(2**28, machine.line, "cuda")
        machine = replace(machine, name=torch.cuda.get_device_name(), **measured)
    return {"machine": asdict(machine), "table": table(machine), "checks": check(SMALL, WORLDS)}


def table(machine: Machine) -> list[dict[str, Any]]:
    """A line a model, engine and region, and what the paper's restore costs there."""
    lines = []
    for name, (model, ranks, sequences, engines) in MODELS.items():
        shape, tokens = SHAPES[model], sequences * CONTEXT
        batch = {"tokens": tokens, "micro_steps": micro_steps(BATCH, ranks, tokens)}
        # Where the paper's code keeps whole weights of 16 bits on each rank.
        of_restore = Training(shape, "ZeRO-2", ranks, **batch)
        for engine in engines:
            # DDP trains fp32 weights, under autocast; ZeRO 16-bit copies of fp32 masters.
            size = {"gradient": 4} if engine == "DDP" else {}
            training = Training(shape, engine, ranks, **batch, **size)
            for region, frozen in REGIONS.items():
                cost = freeze_cost(training, frozen, machine)
                paper = freeze_cost(replace(training, **PAPER), frozen, machine)
                lines.append(_line(name, engine, region, cost, paper))
        cost = restore_cost(of_restore, machine)
        paper = restore_cost(replace(of_restore, **PAPER), machine)
        lines.append(_line(name, "ZeRO-2", RESTORE, cost, paper))
    return lines


def _line(name: str, engine: str, region: str, cost: Cost, paper: Cost) -> dict[str, Any]:
    """``paper_share``: that of a step in the setting of the paper, which has no 70B."""
    more = {"paper_share": paper.share} if name.startswith("7B") else {}
    about = {"model": name, "engine": engine, "region": region}
    return {**about, **asdict(cost), "share": cost.share, **more}


def check(size: Size, worlds: dict[int, list[str]], steps: int = 5) -> list[dict[str, Any]]:
    """A line a number of processes, engine and region: what was predicted and what was measured.

    ``fixed``: seconds measured with hardly any entry frozen, which no prediction includes.
    """
    shape = Shape(size["hidden"], size["inner"], size["layers"], size["rows"])
    lines = []
    for world, engines in worlds.items():
        regions = {name: (frozen.kind, frozen.ratio) for name, frozen in REGIONS.items()}
        regions[FEW] = ("entries", 1 / size["hidden"] ** 2)  # one or a few of each matrix
        settings = {
            "size": size, "engines": engines, "regions": regions, "steps": steps, "line": LINE,
        }  # fmt: skip
        ranks = on_ranks(world, "benchmarks.scale", settings)
        machine = Machine("this machine", LINE, **{
            name: statistics.median(rank["machine"][name] for rank in ranks)
            for name in ("bandwidth", "scattered")
        })  # fmt: skip
        for engine in engines:
            training = Training(shape, engine, world, gradient=4)
            runs = {
                name: _most([rank["runs"][f"{engine}, {name}"] for rank in ranks])
                for name in regions
            }
            for name, frozen in REGIONS.items():
                lines.append({
                    "processes": world, "engine": engine, "region": name,
                    "bandwidth": machine.bandwidth, "scattered": machine.scattered,
                    "fixed": runs[FEW]["seconds"],
                    "predicted": predicted(training, frozen, machine), "measured": runs[name],
                })  # fmt: skip
    return lines


def _most(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Of one run on all ranks: bytes of the one that holds most, seconds of the slowest."""
    most: dict[str, float] = {
        part: max(run[part] for run in runs) for part in ("entries", "guarded", "values")
    }
    return {**most, "seconds": max(statistics.median(run["seconds"]) for run in runs)}


def predicted(training: Training, frozen: Frozen, machine: Machine) -> dict[str, float]:
    """What :func:`freeze_cost` says of a CPU, where the region itself is held in the same memory.

    It is the mask's where a freeze keeps it as it is stored; packed bits it keeps beside them.
    """
    cost = freeze_cost(training, frozen, machine)
    packed = frozen.kind == "entries" and frozen.ratio > 1 / 32
    beside = frozen.stored(training.shape) if packed else 0.0
    return {
        "entries": cost.entries + beside,
        "guarded": cost.guarded,
        "values": cost.values,
        "seconds": cost.mask_seconds + cost.guard_seconds,
    }


def rows(figures: Results) -> list[Row]:
    """The table of the large models, then how far the arithmetic was from what was measured."""
    machine = figures["machine"]
    assumed = Row(
        f"Taken for each {machine['name']}",
        f"{machine['bandwidth'] / 1e12:.2f} TB/s streaming, {machine['scattered'] / 1e12:.2f} in "
        f"scattered lines of {machine['line']} bytes, "
        f"{machine['operations'] / 1e12:.0f} TFLOP/s of training",
    )
    of_table = [_table_row(line, machine["memory"]) for line in figures["table"]]
    return [assumed, *of_table, *_byte_rows(figures["checks"]), *_second_rows(figures["checks"])]


def _table_row(line: dict[str, Any], memory: float) -> Row:
    state = f"{line['state'] / 1e9:.0f} GB"
    fits = "" if line["state"] <= memory else f", which does not fit {memory / 1e9:.0f} GB"
    figure = (
        f"{line['entries'] / 1e9:.2f} GB, {line['values'] / 1e9:.2f} more in a step, beside {state}"
        f"{fits}; {1e3 * line['mask_seconds']:.1f} ms a micro-step, "
        f"{1e3 * line['guard_seconds']:.1f} ms a step: {100 * line['share']:.2f}% of the step"
    )
    if "paper_share" in line:
        figure += f" ({100 * line['paper_share']:.1f}% in the paper's setting)"
    what = f"{line['model']}, {line['engine']}: {line['region']}"
    if line["region"] != GOAL:
        return Row(what, figure)
    met = line["share"] <= 0.01
    moved = f"{line['mask_moved'] / 1e9:.1f} GB a micro-step and {line['guard_moved'] / 1e9:.1f}"
    return Row(what, figure, "at most 1% of the step", met, "" if met else f"{moved} a step move")


def _byte_rows(checks: list[dict[str, Any]]) -> Iterator[Row]:
    for processes in sorted({line["processes"] for line in checks}):
        off = [
            line["predicted"][part] / line["measured"][part]
            for line in checks
            for part in ("entries", "guarded", "values")
            if line["processes"] == processes and line["measured"][part]
        ]
        worst = max(off, key=lambda ratio: abs(ratio - 1))
        met = abs(worst - 1) <= 0.01
        yield Row(
            f"Check, {_named(processes)}: bytes, predicted by measured",
            f"{min(off):.4f} to {max(off):.4f} over {len(off)} figures",
            "within 1%",
            met,
            "" if met else f"the figure that is furthest off is {worst:.3f}",
        )


def _second_rows(checks: list[dict[str, Any]]) -> Iterator[Row]:
    """Measured seconds, by those predicted for the bytes and those of hardly any entry together."""
    for processes in sorted({line["processes"] for line in checks}):
        times = [
            line["measured"]["seconds"] / (line["fixed"] + line["predicted"]["seconds"])
            for line in checks
            if line["processes"] == processes
        ]
        yield Row(
            f"Check, {_named(processes)}: seconds, measured by predicted",
            f"{min(times):.2f} to {max(times):.2f} over {len(times)} runs",
        )


def _named(processes: int) -> str:
    return f"{processes} processes" if processes > 1 else "1 process"


APART = 101  # entries between two that are touched: as with 1%, about; no power of two


class Plain:
    """A model in one process or under DDP, with the calls of a DeepSpeed engine."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
        several = dist.is_initialized() and dist.get_world_size() > 1
        self.model = DistributedDataParallel(model) if several else model

    def __call__(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def destroy(self) -> None:
        pass


def bandwidths(elements: int, line: int, device: str = "cpu") -> dict[str, float]:
    """Bytes a second, read and written, of 4-byte elements: ``bandwidth`` when one tensor is
    copied to another, ``scattered`` when single entries are written, each in a line of its own."""
    source, target = torch.ones(2, elements, device=device)  # zeros might share pages
    some = target[::APART]
    return {
        "bandwidth": 2 * 4 * elements / _seconds(lambda: target.copy_(source), device),
        "scattered": 2 * line * len(some) / _seconds(lambda: some.fill_(1.0), device),
    }


def _seconds(work: Callable[[], object], device: str, rounds: int = 9) -> float:
    spent = []
    for _ in range(rounds + 1):
        finish(device)
        start = time.perf_counter()
        work()
        finish(device)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])


def run(size: dict[str, Any], engine: str, region: tuple[str, float], steps: int) -> dict[str, Any]:
    """A freeze of this rank: bytes that it holds, and seconds of each of ``steps`` steps."""
    model = make_model(size)
    chosen = make_region(model, *region)
    if engine == "DDP":
        trained: Any = Plain(model)
        handle = freeze(trained.model, trained.optimizer, chosen)
    else:
        trained = make_engine(model, int(engine[-1]), 1, 1, size["dtype"])
        handle = freeze(trained, None, chosen)
    batch = torch.randint(size["rows"], (1, size["tokens"]))
    seconds = []
    for number in range(2 + steps):  # the first two are audited
        before = handle.seconds
        train(trained, [batch])
        if number >= 2:
            seconds.append(handle.seconds - before)
    handle.verify()
    figures = {**held_bytes(handle), "seconds": seconds}
    handle.remove()
    trained.destroy()
    return figures


def run_all(
    size: dict[str, Any], engines: list[str], regions: dict, steps: int, line: int
) -> dict[str, Any]:
    """This rank's bandwidths, and its run of every engine and region."""
    weights = sum(parameter.numel() for parameter in make_model(size).parameters())
    figures: dict[str, Any] = {"machine": bandwidths(weights, line), "runs": {}}
    for engine in engines:
        for name, region in regions.items():
            figures["runs"][f"{engine}, {name}"] = run(size, engine, region, steps)
            gc.collect()
    return figures


def main(**settings: Any) -> None:
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    deepspeed.init_distributed("gloo")
    dist.barrier()  # all ranks want the memory's bandwidth at once
    ranks: list = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, run_all(**settings))
    if dist.get_rank() == 0:
        Path(os.environ["FOUND"]).write_text(json.dumps(ranks))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a regular exit
