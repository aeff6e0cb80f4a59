"""Selection against numpy's stable sort, on scores full of ties."""

import itertools
import threading

import numpy as np
import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.regions import Base, Region
from freezetrain.scoring import Scores, core, monolingual, select, selection
from freezetrain.scoring.selection import read_ahead

SHAPES = {  # not in the order of the names, which decides ties
    "blocks.1.up.weight": (6, 5),
    "blocks.0.up.weight": (6, 5),
    "blocks.0.down.weight": (4, 9),
    "blocks.0.norm.weight": (7,),
    "blocks.0.up.bias": (6,),
    "blocks.1.experts.down": (3, 4, 5),
    "blocks.1.experts.down_bias": (3, 4),
    "blocks.1.conv.weight": (5, 8),  # stored as [in, out]
    "head.weight": (10, 3),
    "other.weight": (2, 3),
}
MADE = {
    "norms": ["blocks.0.norm.weight"],
    "transposed": ["blocks.1.conv.weight"],
    "method": "taylor",
}


def tied_scores(seed: int = 0, values: int = 4, **made: object) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores(
        {
            name: torch.from_numpy(rng.integers(0, values, shape).astype(np.float32))
            for name, shape in SHAPES.items()
        },
        Base("base", None, "f00"),
        {**MADE, **made},
    )


def stable_pick(values: np.ndarray, ratio: float, which: str) -> np.ndarray:
    order = np.argsort(-values if which == "top" else values, kind="stable")
    mask = np.zeros(len(values), dtype=bool)
    mask[order[: int(np.floor(ratio * len(values) + 0.5))]] = True
    return mask


def units_of(name: str, scores: np.ndarray, unit: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The score of each unit [U], and the unit of each entry, of the tensor's shape."""
    which = np.arange(scores.size).reshape(scores.shape)
    if unit == "tensor":
        which = np.zeros_like(which)
    elif unit != "entry":
        if scores.ndim < 2 or name.endswith("bias"):
            return None
        *experts, rows, columns = np.indices(scores.shape)
        by_last = (unit == "column") != (name in MADE["transposed"])
        which = columns if by_last else rows
        for index in experts:
            which = which + index * scores.shape[-1 if by_last else -2]
    sums = np.bincount(which.ravel(), scores.ravel().astype(float))
    return sums / np.bincount(which.ravel()), which


def reference(scores: Scores, ratio: float, which: str, per: str, unit: str, norms: bool) -> Region:
    units = {
        name: units
        for name in sorted(scores)
        if (norms or name not in MADE["norms"])
        and (units := units_of(name, scores[name].numpy(), unit)) is not None
    }
    layer = {name: name.split(".")[1] if name[:6] == "blocks" else "none" for name in units}
    group = {"tensor": lambda name: name, "layer": layer.get, "model": lambda name: "all"}[per]
    masks = {}
    for key in {group(name) for name in units}:
        names = [name for name in units if group(name) == key]
        chosen = stable_pick(np.concatenate([units[name][0] for name in names]), ratio, which)
        for name, start in zip(
            names, itertools.accumulate([0] + [len(units[n][0]) for n in names]), strict=False
        ):
            masks[name] = torch.from_numpy(chosen[start + units[name][1]])
    return Region.from_masks(masks)


@pytest.mark.parametrize("unit", ["entry", "row", "column", "tensor"])
@pytest.mark.parametrize("per", ["tensor", "layer", "model"])
@pytest.mark.parametrize("which", ["top", "bottom"])
@pytest.mark.parametrize("norms", [False, True])
def test_selects_what_a_stable_sort_selects(which: str, per: str, unit: str, norms: bool) -> None:
    if unit == per:
        with pytest.raises(UserError, match="not per tensor"):
            select(tied_scores(), 0.5, per=per, unit=unit)
        return
    for seed, ratio in enumerate((0.01, 0.1, 0.3, 0.5, 0.99, 1.0)):
        scores = tied_scores(seed)
        region = select(scores, ratio, which=which, per=per, unit=unit, norms=norms)
        assert region == reference(scores, ratio, which, per, unit, norms), ratio
        assert ("blocks.0.norm.weight" in region) == (norms and unit not in ("row", "column"))
        assert region.base == scores.base


def test_top_one_percent_of_each_tensor_is_the_default() -> None:
    scores = Scores({"a.0.w": torch.rand(50, 40), "a.1.w": torch.rand(30, 11)})
    region = select(scores, 0.01)
    assert [region[name].count for name in ("a.0.w", "a.1.w")] == [20, 3]  # 3.3 is rounded to 3
    for name in region.names:
        inside, mask = scores[name], region.masks()[name]
        assert inside[mask].min() > inside[~mask].max()


RNG = np.random.default_rng(0)


def any_bits(size: int) -> np.ndarray:
    """Floats of any bits but infinities and NaN: subnormal, huge, of either sign."""
    values = RNG.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    return np.where(np.isfinite(values), values, np.float32(0))


VALUES = {  # each as vectors of odd and even lengths
    "normal": [RNG.standard_normal(n) for n in (4001, 1, 0, 2500)],
    "tied": [RNG.integers(-1, 2, n) for n in (500, 80)],
    "some tied": [RNG.permutation(5000) // 40, RNG.permutation(3000) // 40],
    "any bits": [any_bits(5003), any_bits(1024)],
    "zeros of either sign": [np.where(RNG.random(600) < 0.5, 0.0, -0.0), [-0.0, 0.0, 1.0, -1.0]],
    "one large column": [np.where(np.arange(6400) % 64 == 9, 5, RNG.random(6400))],
    "ascending, descending": [np.arange(4000), np.arange(9000, 4000, -1)],
    "mostly zero": [np.maximum(RNG.standard_normal(3000) - 2, 0)],
}


@pytest.mark.parametrize("chunk", [61, 1 << 18])
@pytest.mark.parametrize("bound", ["of a sample", "too high"])
@pytest.mark.parametrize("which", ["top", "bottom"])
@pytest.mark.parametrize("name", VALUES)
def test_selects_what_a_stable_sort_selects_whatever_the_values(
    name: str, which: str, bound: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "_CHUNK", chunk)
    monkeypatch.setattr(selection, "_SAMPLE", 256)
    if bound == "too high":
        monkeypatch.setattr(selection, "_likely_bound", lambda *_: np.float32(np.inf))
    parts = [np.asarray(part, dtype=np.float32) for part in VALUES[name]]
    scores = Scores({f"part{n}": torch.from_numpy(part) for n, part in enumerate(parts)})
    total = sum(map(len, parts))
    for count in (0.1, 1, 5, 60, 100, total // 32, total // 2, total - 1, total):
        chosen = stable_pick(np.concatenate(parts), count / total, which)
        masks = np.split(chosen, np.cumsum([*map(len, parts)])[:-1])
        expected = {f"part{n}": torch.from_numpy(mask) for n, mask in enumerate(masks)}
        region = select(scores, count / total, which=which, per="model")
        assert region == Region.from_masks(expected), count


def test_the_next_tensor_is_read_while_one_competes_and_no_other() -> None:
    fetched, changed = [], threading.Condition()

    def fetch(item: int) -> int:
        with changed:
            fetched.append(item)
            changed.notify()
        return 1 // (4 - item)

    before = threading.active_count()
    results = read_ahead(fetch, range(9))
    for item in range(4):
        assert next(results) == 1 // (4 - item)
        with changed:
            assert changed.wait_for(lambda: len(fetched) >= item + 2, timeout=60)  # noqa: B023
            assert fetched == list(range(item + 2))
    with pytest.raises(ZeroDivisionError):  # in its place
        next(results)
    assert threading.active_count() == before


def test_ties_go_to_the_first_index_of_the_first_name_whatever_the_order() -> None:
    scores = Scores({name: torch.ones(shape) for name, shape in SHAPES.items()})
    shuffled = Scores({name: scores[name] for name in reversed(list(scores))})
    region = select(scores, 0.1, per="model")
    assert region == select(shuffled, 0.1, per="model")
    assert region == select(scores, 0.1, per="model", which="bottom")
    # 25.7 of 257 entries, rounded; the name that sorts first has room for them.
    assert {name: region.indices(name).tolist() for name in region if region[name].count} == {
        "blocks.0.down.weight": list(range(26))
    }


def test_rows_that_are_equal_but_for_their_order_tie() -> None:
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(501, generator=generator).mul(12).exp()  # no sum of these is exact
    orders = [torch.randperm(501, generator=generator) for _ in range(8)]
    scores = Scores({"w": torch.stack([row[order] for order in orders])})
    assert select(scores, 0.5, unit="row") == Region.from_masks(
        {"w": torch.arange(8)[:, None].expand(8, 501) < 4}
    )


def test_parameters_by_name_and_pattern() -> None:
    scores = tied_scores()
    region = select(scores, 0.5, parameters=["blocks.*.up.weight", "head.weight"])
    assert region.names == ["blocks.0.up.weight", "blocks.1.up.weight", "head.weight"]
    with pytest.raises(UserError, match=r"matches 'head.wait' \(did you mean 'head.weight'"):
        select(scores, 0.5, parameters=["head.wait"])
    with pytest.raises(UserError, match=r"nothing to select from.*norms=False"):
        select(scores, 0.5, parameters=["*norm*"])
    with pytest.raises(UserError, match=r"nothing to select from.*unit='row'"):
        select(scores, 0.5, parameters=["*norm*", "*bias"], norms=True, unit="row")


@pytest.mark.parametrize("ratio", [0, -0.1, 1.0001, float("nan"), 5])
def test_refuses_a_ratio_outside_0_to_1(ratio: float) -> None:
    with pytest.raises(UserError, match="ratio above 0 and at most 1"):
        select(tied_scores(), ratio)
    with pytest.raises(UserError, match="ratio above 0 and at most 1"):
        monolingual({"xx": tied_scores(), "yy": tied_scores()}, ratio)


@pytest.mark.parametrize("option", ["which", "per", "unit"])
def test_refuses_an_unknown_option(option: str) -> None:
    with pytest.raises(UserError, match=f"expected {option} to be one of .*, got 'best'"):
        select(tied_scores(), 0.5, **{option: "best"})


def test_says_how_the_region_was_made() -> None:
    made = select(tied_scores(language="xx"), 0.25, which="bottom", per="layer").made
    assert made == {
        "operation": "select",
        "ratio": 0.25,
        "which": "bottom",
        "per": "layer",
        "unit": "entry",
        "parameters": None,
        "norms": False,
        "scores": {"method": "taylor", "language": "xx"},
    }


@pytest.mark.parametrize("norms", [False, True])
def test_core_is_the_top_of_the_sum(norms: bool) -> None:
    parts = [tied_scores(seed, values=1000, batches=2) for seed in range(3)]
    summed = Scores(
        {name: torch.stack([part[name] for part in parts]).sum(0) for name in SHAPES}, made=MADE
    )
    assert core(parts, 0.2, norms=norms) == reference(summed, 0.2, "top", "tensor", "entry", norms)


@pytest.mark.parametrize("norms", [False, True])
def test_monolingual_is_top_of_one_and_of_no_other(norms: bool) -> None:
    scores = {name: tied_scores(seed) for seed, name in enumerate(("xx", "yy", "zz"))}
    tops = {
        name: reference(part, 0.3, "top", "tensor", "entry", norms).masks()
        for name, part in scores.items()
    }
    regions = monolingual(scores, 0.3, norms=norms)
    assert list(regions) == ["xx", "yy", "zz"]
    assert monolingual(scores, 0.3, languages=[]) == {}
    for language, region in regions.items():
        others = [tops[other] for other in tops if other != language]
        expected = {
            name: mask & ~others[0][name] & ~others[1][name]
            for name, mask in tops[language].items()
        }
        assert region == Region.from_masks(expected)
        assert region.names == sorted(expected)
        assert 0 < region.count < sum(int(mask.sum()) for mask in tops[language].values())
        assert region.base == scores[language].base
    assert regions["yy"].made["language"] == "yy"
    assert regions["yy"].made["others"] == ["xx", "zz"]
    one = monolingual(scores, 0.3, languages=["yy"], norms=norms)
    assert one == {"yy": regions["yy"]}


def test_monolingual_refuses_what_cannot_be_compared() -> None:
    scores = {name: tied_scores(seed) for seed, name in enumerate(("xx", "yy", "zz"))}
    with pytest.raises(UserError, match=r"scores of 'xy', got those of xx, yy, zz"):
        monolingual(scores, 0.3, languages=["xy"])
    with pytest.raises(UserError, match=r"two languages at least.*those of xx"):
        monolingual({"xx": scores["xx"]}, 0.3)
    fewer = Scores({name: scores["yy"][name] for name in scores["yy"] if name != "head.weight"})
    with pytest.raises(UserError, match=r"of the same parameters, only some hold 'head.weight'"):
        monolingual({"xx": scores["xx"], "yy": fewer}, 0.3)
    other = Scores(dict(scores["yy"]), Base("other", None, "f11"))
    with pytest.raises(UserError, match="of one base model"):
        monolingual({"xx": scores["xx"], "yy": other}, 0.3)
