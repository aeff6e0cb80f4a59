"""Scores that are read when asked for, and what is done with them in the memory of one tensor."""

import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions.storage import write_safetensors
from freezetrain.scoring import Scores, monolingual, select

SHAPES = {
    "blocks.1.up": (6, 5),
    "blocks.0.up": (6, 5),
    "blocks.0.norm": (7,),
    "blocks.0.experts": (2, 4, 5),
    "head": (10, 3),
}
MADE = {"norms": ["blocks.0.norm"], "method": "taylor", "batches": 1}


class Recorded(Mapping[str, Tensor]):
    """Gives a new tensor each time, and keeps count of those whose memory still stands.

    All of the mappings that share ``alive`` are counted together.
    """

    def __init__(self, tensors: Mapping[str, Tensor], alive: "Alive") -> None:
        self.tensors = dict(tensors)
        self.alive = alive

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.alive.begin(name, self.tensors[name].numpy().copy()))

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class Alive:
    """Arrays that were handed out and whose memory still stands; the most that ever did."""

    def __init__(self) -> None:
        self.now = 0
        self.most = 0
        self.reads: list[str] = []

    def begin(self, name: str, array: np.ndarray) -> np.ndarray:
        self.reads.append(name)
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(array, self._end)
        return array

    def _end(self) -> None:
        self.now -= 1


def tensors(seed: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.integers(0, 5, shape).astype(np.float32))
        for name, shape in SHAPES.items()
    }


def lazy(seed: int, alive: Alive) -> Scores:
    return Scores(Recorded(tensors(seed), alive), made=MADE)


def held(seed: int) -> Scores:
    return Scores(tensors(seed), made=MADE)


def test_shapes_and_names_are_known_without_reading() -> None:
    alive = Alive()
    total = Scores.sum([lazy(0, alive), lazy(1, alive)])
    assert total.shapes == SHAPES
    assert list(total) == list(SHAPES)
    assert "head" in total
    assert "tail" not in total
    assert alive.reads == []
    assert held(0).shapes == SHAPES


def test_every_read_is_checked() -> None:
    for bad in (torch.nan, torch.inf):
        scores = Scores(Recorded({**tensors(0), "head": torch.tensor([1.0, bad])}, Alive()))
        assert scores["blocks.0.up"].shape == (6, 5)
        with pytest.raises(UserError, match="NaN or infinity in 'head'"):
            select(scores, 0.5)
    with pytest.raises(UserError, match=r"floating scores of 'head', got torch.int64"):
        Scores(Recorded({"head": torch.arange(3)}, Alive()))["head"]
    assert Scores(Recorded({"a": torch.rand(3).half()}, Alive()))["a"].dtype == torch.float32


@pytest.mark.parametrize(
    ("per", "unit"),
    [
        ("tensor", "entry"),
        ("tensor", "row"),
        ("layer", "entry"),
        ("layer", "tensor"),
        ("model", "entry"),
        ("model", "row"),
    ],
)
@pytest.mark.parametrize("parts", [1, 3])
def test_selecting_holds_one_tensor_at_a_time_and_the_next(per: str, unit: str, parts: int) -> None:
    alive = Alive()
    wanted = select(Scores.sum([held(seed) for seed in range(parts)]), 0.3, per=per, unit=unit)
    each = [lazy(seed, alive) for seed in range(parts)]
    scores = each[0] if parts == 1 else Scores.sum(each)
    assert select(scores, 0.3, per=per, unit=unit) == wanted
    assert alive.most <= (1 if per == "model" else 2)
    times = 1 if per == "tensor" or unit != "entry" else 3
    read = [name for name in alive.reads if name == "blocks.1.up"]
    # A layer with a single parameter needs no second look, as a tensor.
    assert len(read) == parts * (1 if per == "layer" else times)
    assert alive.reads.count("blocks.0.up") == parts * times
    assert "blocks.0.norm" not in alive.reads


def test_monolingual_reads_each_tensor_once_and_holds_one_at_a_time() -> None:
    alive = Alive()
    scores = {language: lazy(seed, alive) for seed, language in enumerate(("xx", "yy", "zz"))}
    wanted = monolingual({name: held(seed) for seed, name in enumerate(scores)}, 0.3)
    assert monolingual(scores, 0.3) == wanted
    assert alive.most == 1
    assert sorted(alive.reads) == sorted(3 * [name for name in SHAPES if "norm" not in name])


def test_saving_a_sum_streams_and_a_file_is_read_when_asked(tmp_path) -> None:
    alive = Alive()
    scores = Scores.sum([lazy(0, alive), lazy(1, alive)])
    scores.save(tmp_path / "sum.safetensors")
    assert alive.most == 1
    assert len(alive.reads) == 2 * len(SHAPES)
    loaded = Scores.load(tmp_path / "sum.safetensors")
    assert list(loaded) == list(SHAPES)
    for name, expected in tensors(0).items():
        assert torch.equal(loaded[name], expected + tensors(1)[name])
        assert loaded[name] is not loaded[name]  # nothing is kept
    assert select(loaded, 0.3) == select(scores, 0.3)


def test_a_header_that_lists_other_parameters_is_refused(tmp_path) -> None:
    header = {"format": "freezetrain-scores/1", "parameters": ["a"], "base": None, "made": {}}
    write_safetensors(tmp_path / "x.safetensors", {"b": torch.ones(2)}, header)
    with pytest.raises(UserError, match="lists other parameters"):
        Scores.load(tmp_path / "x.safetensors")
