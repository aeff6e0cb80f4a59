"""What scoring and selecting hold in memory: ``python benchmarks/scoring_memory.py`` (Linux, CPU).

A model of 551 million random weights and a tiny one are scored by `freezetrain score`, in one
process and under FSDP2 in two, then regions are selected from the scores, each command in processes
of its own. Every 10 ms each process reads what it holds of its own (RssAnon) and of mapped files
(RssFile, which the system takes back when it needs the room). The peaks of the tiny model are taken
off, so that Python and its libraries do not count. Beside each stands what the arithmetic says, and
what it says of models of 7 and 70 billion weights. Printed as JSON, in MB (10^6 bytes); under
several processes of the one that took most. ``docs/scoring_memory.json`` is such an output.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from random_model_runs import make_model, run_ranks

LARGE = {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16, "rows": 32000}
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "rows": 6144}
# LLaMA-2's, of which 70B has fewer heads of keys and values.
FAMILY: dict[str, dict[str, int]] = {
    "7B": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "rows": 32000},
    "70B": {
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "rows": 32000,
        "key_value": 1024,
    },
}  # fmt: skip
LANGUAGES = ["en", "ja", "ru"]
BATCH, LENGTH = 2, 128
WORKER = """
import json, os, re, sys, threading, time
peaks = {"RssAnon": 0, "RssFile": 0}
def look():
    while True:
        status = open("/proc/self/status").read()
        for name in peaks:
            peaks[name] = max(peaks[name], int(re.search(name + r":\\s+(\\d+)", status)[1]))
        time.sleep(0.01)
threading.Thread(target=look, daemon=True).start()
from freezetrain.cli import main
try:
    main()
finally:
    json.dump(peaks, open(os.environ["HELD"], "w"))
    import torch.distributed as dist
    if dist.is_initialized():
        sys.stdout.flush()
        os._exit(0)
"""
Peaks = dict[str, float]


def measured(words: list[str], world: int, folder: Path) -> Peaks:
    """MB of the process that held most of its own."""
    held = [json.loads(told) for told in run_ranks(WORKER, words, world, folder)]
    most = max(held, key=lambda peaks: peaks["RssAnon"])
    return {name: size * 1024 / 1e6 for name, size in most.items()}


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
    of = sizes(shape)
    split = (of["weights"] * weight_bytes / world, of["scored"] * 4 / world)
    if world == 1:
        more = of["largest"] * (weight_bytes + (4 if weight_bytes < 4 else 0) + 4)
    else:
        block = of["scored"] / shape["num_hidden_layers"]
        more = (of["weights"] - of["scored"] + 3 * block) * weight_bytes
    return {
        "weights": split[0] / 1e6,
        "sums": split[1] / 1e6,
        "whole": more / 1e6,
        "total": (sum(split) + more) / 1e6,
    }


def selecting(shape: Mapping[str, int], ratio: float, languages: int) -> dict[str, float]:
    """MB: some copies of one matrix's scores, and the region, of 4 bytes an entry.

    The sum of the languages is made in fp64 and rounded to fp32; a copy in which all values compete
    is needed only where few_of_many does not do, so that this is an upper bound.
    """
    of = sizes(shape)
    matrix = of["largest"] * (8 + 4 + (4 if languages else 0) + 4)
    region = of["scored"] * ratio * 4
    return {"matrix": matrix / 1e6, "region": region / 1e6, "total": (matrix + region) / 1e6}


def cases(model: Path, out: Path) -> dict[str, tuple[int, list[str]]]:
    """Case → processes and command, in order: later ones read what the first one wrote."""
    sequences = 8
    score = [
        "score", "--model", str(model), "--languages", json.dumps(LANGUAGES), "--sequences",
        str(sequences), "--sequence_length", str(LENGTH), "--batch", str(BATCH),
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


def rounded(figures: Mapping[str, float]) -> dict[str, int]:
    return {name: round(value) for name, value in figures.items()}


def main() -> None:
    found: dict[str, Any] = {"weights": sizes(LARGE)["weights"], "measured": {}}
    with TemporaryDirectory() as name:
        folder = Path(name)
        peaks: dict[str, dict[str, Peaks]] = {}
        for size, shape in (("tiny", TINY), ("large", LARGE)):
            make_model(folder / size, **shape)
            for case, (world, words) in cases(folder / size, folder / f"out-{size}").items():
                peaks.setdefault(case, {})[size] = measured(words, world, folder)
                print(size, case, rounded(peaks[case][size]), file=sys.stderr)
    for case, by_size in peaks.items():
        own = {name: by_size["large"][name] - by_size["tiny"][name] for name in by_size["large"]}
        found["measured"][case] = {
            "own": round(own["RssAnon"]),
            "mapped": round(own["RssFile"]),
            "arithmetic": rounded(arithmetic(case, LARGE, 4)),
        }
    # 16-bit weights, as models of these sizes are held; on 1 and on 8 GPUs.
    found["arithmetic"] = {
        name: {
            "weights": round(sizes(shape)["weights"]),
            "score": rounded(scoring(shape, 2)),
            "score, fsdp2 on 8": rounded(scoring(shape, 2, 8)),
            "select": rounded(selecting(shape, 0.01, len(LANGUAGES))),
        }
        for name, shape in FAMILY.items()
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
