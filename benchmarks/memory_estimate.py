"""How far off the memory estimate is: ``python benchmarks/memory_estimate.py`` (Linux, CPU).

For each engine a model of 58 million weights and a tiny one are trained by `freezetrain train` for
two steps, in processes of their own, and the most that each process ever held (VmHWM) is read. The
difference between the two models is compared with the difference of their estimates, so that
Python, its libraries and buffers of the transport do not count. Printed as JSON, in MB (10^6
bytes); under several processes of the one that took most. ``docs/memory_estimate.json`` is such an
output. Memory allocators are told to give freed blocks back at once. An argument is a pattern of
the cases to run.
"""

import json
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from random_model_runs import make_model, run_ranks

from freezetrain.cli.command_line import parse

CASES: dict[str, tuple[int, list[str]]] = {
    "one": (1, []),
    "one, 1% frozen": (1, ["--region", "REGION"]),
    "one, gradient checkpointing": (1, ["--engine.gradient_checkpointing", "true"]),
    "one, accumulating": (1, ["--optimization.batch_tokens", "2048"]),
    "one, bf16-mixed": (1, ["--optimization.precision", "bf16-mixed"]),
    "ddp": (2, ["--engine.kind", "ddp"]),
    "fsdp2": (2, ["--engine.kind", "fsdp2"]),
    "zero-1": (2, ["--engine.kind", "zero-1"]),
    "zero-2": (2, ["--engine.kind", "zero-2"]),
    "zero-2, bf16-mixed": (
        2,
        ["--engine.kind", "zero-2", "--optimization.precision", "bf16-mixed"],
    ),
    "zero-2, 1% frozen": (2, ["--engine.kind", "zero-2", "--region", "REGION"]),
    "zero-3": (2, ["--engine.kind", "zero-3"]),
}
SIZES = {
    "large": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "rows": 32000},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "rows": 6144},
}
WORKER = """
import re, sys
from freezetrain.cli import main
try:
    main()
finally:
    import torch.distributed as dist
    held = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
    open(f"{__import__('os').environ['HELD']}", "w").write(held[1])
    if dist.is_initialized():
        sys.stdout.flush()
        __import__("os")._exit(0)
"""


def command(model: Path, world: int, options: list[str], out: Path) -> list[str]:
    told = "--optimization.batch_tokens" in options
    batch = [] if told else ["--optimization.batch_tokens", str(1024 * world)]
    return [
        "train", "--model", str(model), "--languages", "[en]", "--watch.off", "true",
        "--optimization.max_steps", "2", "--optimization.sequence_length", "256",
        "--optimization.micro_batch", "4", "--texts.test_one_in", "0",
        *batch,
        *[str(model / "region.safetensors") if word == "REGION" else word for word in options],
        "--out", str(out),
    ]  # fmt: skip


def measured(words: list[str], world: int, folder: Path) -> float:
    """MB that the rank which took most held at most."""
    held = run_ranks(WORKER, words, world, folder)
    if not Path(words[-1], "results.json").is_file():
        raise SystemExit((folder / "log-0").read_text()[-3000:])
    return max(map(int, held)) * 1024 / 1e6


def estimated(words: list[str], world: int) -> Any:
    from freezetrain.models import meta_model
    from freezetrain.regions import Region
    from freezetrain.training.memory import estimate

    recipe = parse(words).recipe
    region = Region.load(recipe.region) if recipe.region else None
    return estimate(meta_model(recipe.model), recipe, world, region, on_gpu=False)


def main() -> None:
    wanted = re.compile(sys.argv[1] if len(sys.argv) > 1 else "")
    found = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for size, shape in SIZES.items():
            make_model(folder / size, **shape)
        for case, (world, options) in CASES.items():
            if not wanted.search(case):
                continue
            real, told, moment = {}, {}, ""
            for size in SIZES:
                words = command(folder / size, world, options, folder / f"out {case} {size}")
                real[size] = measured(words, world, folder)
                memory = estimated(words, world)
                told[size] = memory.peak / 1e6
                moment = memory.moment if size == "large" else moment
            measured_mb = real["large"] - real["tiny"]
            estimated_mb = told["large"] - told["tiny"]
            found[case] = {
                "processes": world,
                "measured": round(measured_mb),
                "estimated": round(estimated_mb),
                "off": round(estimated_mb / measured_mb - 1, 3),
                "peak": moment,
            }
            print(case, found[case], file=sys.stderr)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
