"""Score files, and sums of the scores of several languages."""

import numpy as np
import pytest
import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions import Base
from freezetrain.scoring import Scores


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
