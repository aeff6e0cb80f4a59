"""The 1% region of the scores of a model of a billion weights, from its file to the region: against
merely reading the file, and against the `topk` and `random.sample` of the paper's script.

Scores have the shapes of Llama 3.2 1B's decoder blocks, and sizes spread like those of a
first-order score, rows larger than others. Reading is the sum of each tensor: from the disk, after
the file has been put out of the page cache, and from there, which is memory's speed with one pass.
The script (Zhang et al. 2024, arXiv 2402.14700, ``get_top_bottom_tensor``) works on the matrices of
one block, held in memory; so do we beside it. It gives dense bool masks, we sorted indices.
"""

import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.harness import Options, Results, Row, alternate, ratios, shown, spread
from freezetrain.regions.storage import read_safetensors, write_safetensors
from freezetrain.scoring import Scores, select

TITLE = "Selecting"
RATIO = 0.01
HIDDEN, INNER, KEY_VALUE, BLOCKS = 2048, 8192, 512, 16
DISK_ROUNDS = 3  # each reads the file twice from the disk, which may be slow
GOAL = 1.1  # of reading from the disk; where memory holds the file, there is no limit but passes


def shapes(hidden: int, inner: int, key_value: int, blocks: int) -> dict[str, tuple[int, int]]:
    """The matrices of a Llama's decoder blocks, [out, in]."""
    matrices = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {
        f"model.layers.{block}.{name}.weight": shape
        for block in range(blocks)
        for name, shape in matrices.items()
    }


class Made(Mapping[str, Tensor]):
    """Name -> made-up scores, the same each time that they are asked for; none is kept."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]]) -> None:
        self._shapes = dict(shapes)

    def shape(self, name: str) -> tuple[int, int]:
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        generator = torch.Generator().manual_seed(list(self._shapes).index(name))
        scores = torch.randn(shape, generator=generator)
        scores *= torch.randn(shape, generator=generator)
        return scores.abs_() * torch.randn(shape[0], 1, generator=generator).exp_()

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def write(path: Path, made: Made) -> None:
    """A score file, tensor by tensor."""
    header = {
        "format": "freezetrain-scores/1",
        "parameters": list(made),
        "base": None,
        "made": {"method": "taylor", "batches": 1},
    }
    stored = {name: (made.shape(name), torch.float32) for name in made}
    write_safetensors(path, made, header, shapes=stored, max_shard_bytes=2**62)


def read(path: Path) -> None:
    """One pass over the file."""
    tensors, _ = read_safetensors(path, "scores")
    for name in tensors:
        tensors[name].sum()


def evict(path: Path) -> None:
    """Put a file, of which nothing is mapped or unwritten, out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def script_top(scores: Tensor, ratio: float) -> Tensor:
    """The paper's script: a bool mask of the largest of one matrix."""
    points = scores.view(-1).topk(int(ratio * scores.numel())).indices
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask.view(-1)[points] = True
    return mask


def script_random(scores: Tensor, ratio: float) -> Tensor:
    """The paper's script: a bool mask of as many at random."""
    points = random.sample(range(scores.numel()), int(ratio * scores.numel()))
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    mask.view(-1)[points] = True
    return mask


def measured(rounds: int, *sizes: int) -> Results:
    """``sizes`` as those of :func:`shapes`."""
    made = Made(shapes(*sizes))
    block = {name: made[name] for name in made if ".0." in name}
    scores = Scores(block)
    top = select(scores, RATIO)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scores.safetensors"
        write(path, made)
        size = path.stat().st_size
        file = {"read": lambda: read(path), "select": lambda: select(Scores.load(path), RATIO)}
        memory = alternate(file, rounds)
        disk = alternate(file, min(rounds, DISK_ROUNDS), before=lambda: evict(path))
    in_memory = alternate(
        {
            "select": lambda: select(scores, RATIO),
            "topk": lambda: [script_top(tensor, RATIO) for tensor in block.values()],
            "random_like": lambda: top.random_like(0),
            "random.sample": lambda: [script_random(tensor, RATIO) for tensor in block.values()],
        },
        min(rounds, 5),
    )
    script = {
        ours: spread([b / a for a, b in zip(in_memory[ours], in_memory[theirs], strict=True)])
        for ours, theirs in {"select": "topk", "random_like": "random.sample"}.items()
    }
    return {
        "scores": sum(rows * columns for rows, columns in made._shapes.values()),
        "matrices": len(made),
        "bytes": size,
        "ratio": RATIO,
        "entries": top.count,
        "block": {"scores": top.numel, "matrices": len(top)},
        "seconds": {"memory": memory, "disk": disk, "block": in_memory},
        "ratios": {"memory": ratios(memory, "read"), "disk": ratios(disk, "read")},
        "times_faster": script,
    }


def measure(options: Options) -> Results:
    return measured(options.rounds, HIDDEN, INNER, KEY_VALUE, BLOCKS)


def rows(figures: Results) -> list[Row]:
    what = f"{figures['ratio']:.0%} of {figures['scores'] / 1e6:,.0f}M scores"
    lines = []
    for place, name in {"disk": "the disk", "memory": "the page cache"}.items():
        ratio = figures["ratios"][place]["select"]
        met = ratio["median"] <= GOAL if place == "disk" else None
        lines.append(
            Row(
                f"select {what} from {name}, time of reading them",
                shown(ratio, 2),
                f"at most {GOAL}" if place == "disk" else "",
                met,
                "" if met else _beyond_reading(figures, place),
            )
        )
        for way in ("read", "select"):
            speed = spread([figures["bytes"] / 1e9 / s for s in figures["seconds"][place][way]])
            lines.append(Row(f"{way} from {name}", f"{shown(speed, 2)} GB/s"))
    block = (
        f"{figures['block']['matrices']} matrices, {figures['block']['scores'] / 1e6:,.1f}M scores"
    )
    against = {
        "select": f"select, times as fast as the script's topk: {block}",
        "random_like": "as many at random, times as fast as the script's random.sample",
    }
    for ours, what in against.items():
        faster = figures["times_faster"][ours]
        lines.append(Row(what, shown(faster, 1), "more than 1", faster["median"] > 1))
    return lines


def _beyond_reading(figures: Results, place: str) -> str:
    """How much of the time is not reading, in passes over memory."""
    seconds = figures["seconds"]
    own, read = (seconds[place][way] for way in ("select", "read"))
    extra = median(a - b for a, b in zip(own, read, strict=True))
    passes = extra / median(seconds["memory"]["read"])
    return (
        f"{extra:.2f} s more, {passes:.1f} times a pass over the page cache: scores are compared "
        "with a bound, and sorted out among those that reach it"
    )
