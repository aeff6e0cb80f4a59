"""Memory of `freezetrain train`, `score` and `select`, beside what is estimated (Linux, CPU).

    python -m benchmarks.memory training [PATTERN]   # docs/memory_estimate.json is its output
    python -m benchmarks.memory scoring              # docs/scoring_memory.json is its output

Each command runs with a large model of random weights and with a tiny one, in processes of its own;
the tiny one's figures are taken off, so that Python, its libraries and buffers of the transport do
not count. Memory allocators give freed blocks back at once. Printed as JSON, in MB (10^6 bytes);
under several processes of the one that took most.

training: the most that a process ever held (VmHWM) in three steps under each engine, beside the
memory estimate of ``--dry_run``. PATTERN chooses cases. scoring: every 10 ms each process reads
what it holds of its own (RssAnon) and of mapped files (RssFile, which the system takes back when
it needs the room); beside it what arithmetic says, also of models of 7 and 70 billion weights.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import freezetrain

# A process that runs the command and leaves, in the file that HELD names, its peaks in kB.
WORKER = r"""
import json, os, re, sys, threading, time

def held(name):
    return int(re.search(name + r":\s+(\d+)", open("/proc/self/status").read())[1])

peaks = {"RssAnon": 0, "RssFile": 0}

def look():
    while True:
        for name in peaks:
            peaks[name] = max(peaks[name], held(name))
        time.sleep(0.01)

if os.environ["SAMPLED"]:
    threading.Thread(target=look, daemon=True).start()
from freezetrain.cli import main
try:
    main()
finally:
    import torch.distributed as dist
    with open(os.environ["HELD"], "w") as file:
        json.dump({**peaks, "VmHWM": held("VmHWM")}, file)
    if dist.is_initialized():
        sys.stdout.flush()
        os._exit(0)
"""


def make_model(folder: Path, hidden_size: int, rows: int, **more: int) -> None:
    """A Llama of random weights with the tokenizer of freezetrain's small base, and a region."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from freezetrain.regions import Region

    torch.manual_seed(0)
    heads = max(1, hidden_size // 64)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=hidden_size,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
        **more,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    base = Path(freezetrain.__file__).parent / "base"
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    Region.random(model, 0.01, seed=0).save(folder / "region.safetensors")


def peaks_of(
    words: list[str], world: int, folder: Path, by: str, sampled: bool = False
) -> dict[str, float]:
    """MB of the rank that held most ``by`` one of the figures, running ``freezetrain words``.

    One thread a rank. SystemExit with the end of a rank's log where one fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(world):
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": "1",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "MALLOC_TRIM_THRESHOLD_": "65536",
            "FREEZETRAIN_CACHE": str(folder / "cache"),
            "HELD": str(folder / f"held-{rank}"),
            "SAMPLED": "1" if sampled else "",
        }
        if world > 1:
            environment |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
        with (folder / f"log-{rank}").open("w") as log:
            command = [sys.executable, "-c", WORKER, *words]
            ranks.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    failed = [rank for rank, process in enumerate(ranks) if process.wait()]
    out = Path(words[words.index("--out") + 1])
    if failed or not (out / "results.json").is_file():
        raise SystemExit((folder / f"log-{failed[0] if failed else 0}").read_text()[-3000:])
    held = [json.loads((folder / f"held-{rank}").read_text()) for rank in range(world)]
    most = max(held, key=lambda peaks: peaks[by])
    return {name: size * 1024 / 1e6 for name, size in most.items()}


# Name -> processes and options of `freezetrain train`.
TRAININGS: dict[str, tuple[int, list[str]]] = {
    "one": (1, []),
    "one, 1% frozen": (1, ["--region", "REGION"]),
    "one, pulled": (1, ["--pull.strength", "20"]),
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
    "zero-2, pulled": (2, ["--engine.kind", "zero-2", "--pull.strength", "20"]),
    "zero-3": (2, ["--engine.kind", "zero-3"]),
}
TRAINED = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "rows": 32000}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "rows": 6144}


def training_command(model: Path, world: int, options: list[str], out: Path) -> list[str]:
    given = "--optimization.batch_tokens" in options
    batch = [] if given else ["--optimization.batch_tokens", str(1024 * world)]
    return [
        "train", "--model", str(model), "--languages", "[en]", "--watch.off", "true",
        "--optimization.max_steps", "3", "--optimization.sequence_length", "256",
        "--optimization.micro_batch", "4", "--texts.test_one_in", "0",
        *batch,
        *[str(model / "region.safetensors") if word == "REGION" else word for word in options],
        "--out", str(out),
    ]  # fmt: skip


def estimated(words: list[str], world: int) -> Any:
    """The memory estimate of ``freezetrain words``."""
    from freezetrain.cli.command_line import parse
    from freezetrain.models import meta_model
    from freezetrain.regions import Region
    from freezetrain.training.memory import estimate

    recipe = parse(words).recipe
    region = Region.load(recipe.region) if recipe.region else None
    return estimate(meta_model(recipe.model), recipe, world, region, on_gpu=False)


def measure_training(folder: Path, pattern: str = "") -> dict[str, Any]:
    """Case -> processes, MB measured and estimated, by what share the estimate is off, when the
    estimate has its peak."""
    shapes = {"large": TRAINED, "tiny": TINY}
    for size, shape in shapes.items():
        make_model(folder / size, **shape)
    figures = {}
    for case, (world, options) in TRAININGS.items():
        if not re.search(pattern, case):
            continue
        measured, estimates = {}, {}
        for size in shapes:
            out = folder / f"out {case} {size}"
            words = training_command(folder / size, world, options, out)
            measured[size] = peaks_of(words, world, folder, "VmHWM")["VmHWM"]
            estimates[size] = estimated(words, world)
        measured_mb = measured["large"] - measured["tiny"]
        estimated_mb = (estimates["large"].peak - estimates["tiny"].peak) / 1e6
        figures[case] = {
            "processes": world,
            "measured": round(measured_mb),
            "estimated": round(estimated_mb),
            "off": round(estimated_mb / measured_mb - 1, 3),
            "peak": estimates["large"].moment,
        }
        print(case, figures[case], file=sys.stderr)
    return figures


SCORED = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16, "rows": 32000}
# LLaMA-2's, of which 70B has fewer heads of keys and values.
FAMILY: dict[str, dict[str, int]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "rows": 32000},
    "70B": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "rows": 32000,
        "key_value": 1024,
    },
}  # fmt: skip
LANGUAGES = ["en", "ja", "ru"]


def sizes(shape: Mapping[str, int]) -> dict[str, float]:
    """Weights, scored ones (all in the decoder blocks) and those of the largest matrix."""
    hidden, inner, layers = (
        shape[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    key_value = shape.get("key_value", hidden)
    block = 2 * hidden * hidden + 2 * hidden * key_value + 3 * hidden * inner + 2 * hidden
    embeddings = 2 * shape["rows"] * hidden + hidden
    return {
        "weights": block * layers + embeddings,
        "scored": block * layers,
        "largest": hidden * inner,
    }


def scoring(shape: Mapping[str, int], weight_bytes: int, world: int = 1) -> dict[str, float]:
    """MB on each of ``world`` ranks: weights and sums, split; what is whole for a while.

    In one process a gradient is freed as soon as it is added up: of one matrix there are at most
    the gradient, its fp32 copy where weights have 16 bits, and a product. FSDP2 holds embeddings
    and head gathered, and a block, the next one, and gradients of one. Activations, which grow with
    the batch, are not in it.
    """
    size = sizes(shape)
    split = (size["weights"] * weight_bytes / world, size["scored"] * 4 / world)
    if world == 1:
        more = size["largest"] * (weight_bytes + (4 if weight_bytes < 4 else 0) + 4)
    else:
        block = size["scored"] / shape["num_hidden_layers"]
        more = (size["weights"] - size["scored"] + 3 * block) * weight_bytes
    return {
        "weights": split[0] / 1e6,
        "sums": split[1] / 1e6,
        "whole": more / 1e6,
        "total": (sum(split) + more) / 1e6,
    }


def selecting(shape: Mapping[str, int], ratio: float, languages: int) -> dict[str, float]:
    """MB: some copies of one matrix's scores, and the region, of 4 bytes an entry.

    The sum of the languages is made in fp64 and rounded to fp32; a copy in which all values compete
    is needed only where most cannot be ruled out first, so that this is an upper bound.
    """
    size = sizes(shape)
    matrix = size["largest"] * (8 + 4 + (4 if languages else 0) + 4)
    region = size["scored"] * ratio * 4
    return {"matrix": matrix / 1e6, "region": region / 1e6, "total": (matrix + region) / 1e6}


def scoring_commands(model: Path, out: Path) -> dict[str, tuple[int, list[str]]]:
    """Case -> processes and command, in order: later ones read what the first one wrote."""
    score = [
        "score", "--model", str(model), "--languages", json.dumps(LANGUAGES), "--sequences", "8",
        "--sequence_length", "128", "--batch", "2",
    ]  # fmt: skip
    select = ["select", "--scores", str(out / "score"), "--ratio", "0.01"]
    return {
        "score": (1, [*score, "--out", str(out / "score")]),
        "score, fsdp2": (2, [*score, "--engine.kind", "fsdp2", "--out", str(out / "fsdp2")]),
        "select per tensor": (1, [*select, "--out", str(out / "tensor")]),
        "select per model": (1, [*select, "--per", "model", "--out", str(out / "model")]),
        "select monolingual": (1, [*select, "--kind", "monolingual", "--out", str(out / "mono")]),
    }


def arithmetic(case: str, shape: Mapping[str, int], weight_bytes: int) -> dict[str, float]:
    if case.startswith("select"):
        return selecting(shape, 0.01, len(LANGUAGES))
    return scoring(shape, weight_bytes, 2 if "fsdp2" in case else 1)


def measure_scoring(folder: Path) -> dict[str, Any]:
    """MB of each case, measured and by arithmetic; by arithmetic alone of larger models."""
    peaks: dict[str, dict[str, dict[str, float]]] = {}
    for size, shape in (("tiny", TINY), ("large", SCORED)):
        make_model(folder / size, **shape)
        commands = scoring_commands(folder / size, folder / f"out-{size}")
        for case, (world, words) in commands.items():
            found = peaks_of(words, world, folder, "RssAnon", sampled=True)
            peaks.setdefault(case, {})[size] = found
            print(size, case, _rounded(found), file=sys.stderr)
    measured = {}
    for case, by_size in peaks.items():
        own = {name: by_size["large"][name] - by_size["tiny"][name] for name in by_size["large"]}
        measured[case] = {
            "own": round(own["RssAnon"]),
            "mapped": round(own["RssFile"]),
            "arithmetic": _rounded(arithmetic(case, SCORED, 4)),
        }
    # 16-bit weights, as models of these sizes are held; on 1 and on 8 GPUs.
    larger = {
        name: {
            "weights": round(sizes(shape)["weights"]),
            "score": _rounded(scoring(shape, 2)),
            "score, fsdp2 on 8": _rounded(scoring(shape, 2, 8)),
            "select": _rounded(selecting(shape, 0.01, len(LANGUAGES))),
        }
        for name, shape in FAMILY.items()
    }
    return {"weights": sizes(SCORED)["weights"], "measured": measured, "arithmetic": larger}


def _rounded(figures: Mapping[str, float]) -> dict[str, int]:
    return {name: round(value) for name, value in figures.items()}


def main(what: str = "", *pattern: str) -> None:
    measure = {"training": measure_training, "scoring": measure_scoring}.get(what)
    if measure is None:
        raise SystemExit(__doc__)
    with TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder), *pattern), indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
