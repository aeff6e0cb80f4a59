"""What a freeze adds to a whole training step under DeepSpeed ZeRO-2 and ZeRO-3 on two processes
(forward, backward, reduction, clipping, AdamW, gathering), and what it holds in each of them.

On CPUs over gloo, one thread a process; with a GPU, one process for each and 16 bits.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Found, Options, Row, ratios, shown, spread

TITLE = "Freezing under ZeRO-2 and ZeRO-3"
ROOT = Path(__file__).parents[1]

Size = dict[str, Any]
CPU: Size = {
    "hidden": 384, "inner": 1024, "layers": 4, "rows": 4096, "tokens": 512,
    "dtype": "float32",
}  # fmt: skip
CUDA: Size = {
    "hidden": 1024, "inner": 2816, "layers": 16, "rows": 32000, "tokens": 1024,
    "dtype": "bfloat16",
}  # fmt: skip
NONE, AGAIN, GOAL = "no freeze", "no freeze, again", "1% of entries"
WAYS: dict[str, tuple[str, float] | None] = {
    NONE: None,
    AGAIN: None,  # says how far two equal things are apart here
    "0.1% of entries": ("entries", 0.001),
    GOAL: ("entries", 0.01),
    "5% of entries": ("entries", 0.05),
    "20% of entries": ("entries", 0.2),
    "50% of columns": ("columns", 0.5),
    "half of the tensors, whole": ("tensors", 0.5),
}
# Name → ZeRO stage, micro-steps a step, sequences of each process in a micro-step, ways. With 16
# micro-steps they are half as large, which makes the mask's share twice as large, and few rounds
# are timed.
CASES: dict[str, dict[str, Any]] = {
    f"ZeRO-{stage}, accumulation {accumulate}": {
        "stage": stage, "accumulate": accumulate, "audited": accumulate == 1, **more,
        "ways": {name: WAYS[name] for name in names},
    }
    for accumulate, names, more in (
        (1, list(WAYS), {"sequences": 2}),
        (16, [NONE, GOAL], {"sequences": 1, "rounds": 3}),
    )
    for stage in (2, 3)
}  # fmt: skip


def on_ranks(world: int, module: str, settings: dict[str, Any], device: str = "cpu") -> Any:
    """Run ``python -m module`` with ``settings``, as JSON, on ``world`` ranks of this machine.

    Returns what one of them left, as JSON, in the file that FOUND names. SystemExit with the end
    of what they printed where one fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as name:
        found = Path(name) / "found.json"
        environment = {
            **os.environ, "FOUND": str(found), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        if device == "cpu":
            environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world),
                "--master-addr", "127.0.0.1", "--master-port", str(port),
                "-m", module, json.dumps(settings),
            ],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode or not found.is_file():
            sys.exit(
                f"{module} on {world} ranks failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
            )
        return json.loads(found.read_text())


def measure(options: Options) -> Found:
    if options.device == "cpu":
        return compare(CPU, 2, options)
    import torch

    return compare(CUDA, torch.cuda.device_count(), options)


def compare(size: Size, world: int, options: Options, cases: dict[str, Any] = CASES) -> Found:
    """Raw figures of every way in every case, their ratios and shares."""
    settings = {
        "size": size,
        "device": options.device,
        "cases": {name: {"rounds": options.rounds, **case} for name, case in cases.items()},
    }
    measured = on_ranks(world, "benchmarks.engines_worker", settings, options.device)
    for case in measured.values():
        add_ratios(case["ways"])
    return {"size": size, "world": world, "cases": measured}


def add_ratios(ways: dict[str, Any]) -> None:
    """Of each way its ratio, and the share of its step that its freeze takes by its own clock.

    The ratio is to the mean of the round's steps without a freeze.
    """
    seconds = {name: way["seconds"] for name, way in ways.items()}
    unfrozen = [seconds[name] for name in (NONE, AGAIN) if name in seconds]
    mean = {"mean": [statistics.mean(steps) for steps in zip(*unfrozen, strict=True)]}
    for name, ratio in ratios({**seconds, **mean}, "mean").items():
        if name in ways:
            inside = zip(ways[name]["inside"], ways[name]["seconds"], strict=True)
            ways[name] |= {"ratio": ratio, "share": spread([own / step for own, step in inside])}
    if AGAIN in ways:
        ways[AGAIN]["ratio"] = ratios(seconds, NONE)[AGAIN]


def rows(found: Found) -> list[Row]:
    """Per case and region: the step's ratio; then bytes an entry on the rank that holds most."""
    times, memory = [], []
    for name, case in found["cases"].items():
        ways = case["ways"]
        step = statistics.median(ways[NONE]["seconds"])
        about = (
            f"{name} ({found['world']} processes, {case['parameters'] / 1e6:.1f} million weights, "
            f"{case['tokens']:,} tokens a micro-step, {step:.2f} s a step)"
        )
        noise = ways.get(AGAIN)
        if noise is not None:
            what = f"{about}: a step without a freeze, by another such step"
            times.append(Row(what, shown(noise["ratio"])))
            about = name
        for region, way in ways.items():
            if "count" in way:
                times.append(_time(f"{about}: {region}", way, region == GOAL, noise))
                about = name
                if case["accumulate"] == 1:  # it is the same with more
                    memory.append(_memory(f"{name}, memory: {region}", way))
    return times + memory


def _time(what: str, way: dict[str, Any], main: bool, noise: dict[str, Any] | None) -> Row:
    limit = 1.01 if main else 1.03
    inside = way["share"]["median"]
    figure = f"{shown(way['ratio'])}; mask and guard are {100 * inside:.2f}% of it"
    met = way["ratio"]["median"] <= limit
    note = ""
    if not met:
        note = f"by their own clock, mask and guard take {100 * inside:.2f}% of the step"
        if inside < limit - 1 and noise is not None:
            note += f", and two equal steps are {shown(noise['ratio'])} of each other here"
    return Row(what, figure, f"at most {limit}", met, note)


def _memory(what: str, way: dict[str, Any]) -> Row:
    most = max(way["held"], key=lambda rank: rank["entries"])
    each, guarded, values, stored = (
        part / way["count"]
        for part in (most["entries"], most["guarded"], most["values"], way["region"])
    )
    met = each <= 4
    figure = (
        f"{each:.2f} bytes of each rank for each entry of the region, at rest, and {values:.2f} "
        "of the host for audits"
    )
    note = ""
    if not met:
        note = (
            f"{stored:.2f} the region, whole on every rank, as the mask needs it; {guarded:.2f} "
            f"the entries of this rank's masters"
        )
        if each - stored - guarded >= 0.005:
            note += f"; {each - stored - guarded:.2f} indices made from packed bits"
    return Row(what, figure, "at most 4 bytes", met, note)
