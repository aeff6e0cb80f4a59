"""Scores: files, sums of languages, and what is read in the memory of one tensor."""

import weakref
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions import Base
from freezetrain.regions.storage import write_safetensors
from freezetrain.scoring import Scores, monolingual, select


def example(batches: float = 1, method: str = "taylor", seed: int = 0, **made: object) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"b": torch.rand(3, 4, generator=generator), "a": torch.rand(5, generator=generator)}
    return Scores(tensors, made={"method": method, "batches": batches, "norms": ["a"], **made})


@pytest.mark.parametrize(
    ("method", "weights"),
    [("taylor", (1, 1 / 4)), ("fisher", (1, 1 / 4)), ("wanda", (1, 1 / 2)), ("magnitude", (1, 1))],
)
def test_sum_weighs_languages_alike(method: str, weights: tuple[float, float]) -> None:
    told = {"embeddings": ["b"]}
    parts = [example(1, method, 0, language="xx", **told), example(4, method, 1, language="yy")]
    total = Scores.sum(parts)
    for name in ("b", "a"):
        terms = [
            w * part[name].numpy().astype(float) for w, part in zip(weights, parts, strict=True)
        ]
        np.testing.assert_allclose(total[name].numpy(), sum(terms), rtol=1e-6)
    assert [part["language"] for part in total.made["sum"]] == ["xx", "yy"]
    assert total.made["norms"] == ["a"]
    assert total.selectable(norms=True) == {"a"}
    assert total.selectable(norms=False) == set()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Scores({"a": torch.rand(5)}, made=example().made), "only some hold 'b'"),
        (
            Scores({"a": torch.rand(5), "b": torch.rand(4, 3)}, made=example().made),
            r"one shape for 'b', got \[3, 4\] and \[4, 3\]",
        ),
        (example(method="fisher"), "of one method to sum, got 'taylor' and 'fisher'"),
        (Scores(dict(example())), "say their method"),
        (example(batches=0), "number of batches"),
        (Scores(dict(example()), Base("x", None, "2"), example().made), "one base model"),
    ],
)
def test_sum_refuses_what_does_not_belong_together(other: Scores, message: str) -> None:
    first = Scores(dict(example()), Base("x", None, "1"), example().made)
    with pytest.raises(UserError, match=message):
        Scores.sum([first, other])
    with pytest.raises(UserError, match="at least one language"):
        Scores.sum([])


def test_save_and_load_bring_everything_back_in_order(tmp_path) -> None:
    path = tmp_path / "xx.safetensors"
    scores = Scores(
        dict(example()), Base("gpt", "main", "f00"), {"method": "taylor", "n": [1, None]}
    )
    scores.save(path)
    loaded = Scores.load(path)
    assert list(loaded) == ["b", "a"]
    assert all(torch.equal(loaded[name], scores[name]) for name in scores)
    assert (loaded.base, loaded.made) == (scores.base, scores.made)
    with pytest.raises(UserError, match="exists"):
        scores.save(path)
    example(seed=3).save(path, overwrite=True)
    assert torch.equal(Scores.load(path)["a"], example(seed=3)["a"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="truncated"):
        Scores.load(path)


@pytest.mark.parametrize("bad", [torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf])])
def test_refuses_scores_that_are_not_finite(bad: Tensor) -> None:
    with pytest.raises(UserError, match="NaN or infinity in 'a'"):
        Scores({"a": bad})
    with pytest.raises(UserError, match=r"floating scores of 'a', got torch.int64"):
        Scores({"a": torch.arange(3)})


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


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        (torch.ones(2, dtype=torch.int32), r"got torch.int32, in .*x\.safetensors; copy or make"),
        (torch.tensor([1.0, torch.nan]), r"NaN or infinity in 'a', in .*x\.safetensors"),
        (torch.ones(0), r"x\.safetensors holds no score of 'a', of shape \[0\]"),
    ],
)
def test_scores_that_are_none_are_refused_with_their_file(tmp_path, tensor, complaint) -> None:
    header = {"format": "freezetrain-scores/1", "parameters": ["a"], "base": None, "made": {}}
    write_safetensors(tmp_path / "x.safetensors", {"a": tensor}, header)
    with pytest.raises(UserError, match=complaint):
        Scores.load(tmp_path / "x.safetensors")["a"]


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        ({"method": "nosuch"}, "expected one of taylor, .* as the method, got 'nosuch'"),
        ({"batches": "x"}, "a number of batches above 0, got 'x'"),
        ({"batches": 0}, "a number of batches above 0, got 0"),
        ({"norms": 5}, "names of parameters as norms, got 5"),
        ({"language": ["zh"]}, "the name of a language"),
        ([1], "header of the score file"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, made, complaint) -> None:
    header = {"format": "freezetrain-scores/1", "parameters": ["a"], "base": None, "made": made}
    write_safetensors(tmp_path / "x.safetensors", {"a": torch.ones(2)}, header)
    with pytest.raises(UserError, match=complaint):
        Scores.load(tmp_path / "x.safetensors")
