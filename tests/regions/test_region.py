"""Regions against dictionaries of numpy masks."""

import operator

import numpy as np
import pytest
import torch
from torch import nn

from freezetrain.errors import UserError
from freezetrain.regions import Base, Entries, Region
from freezetrain.scoring.weights import Weight, region_of

SHAPES = {"layers.0.w": (30, 20), "layers.0.b": (30,), "layers.2.w": (4, 5, 6), "head": (11,)}


def masks(seed: int, names=tuple(SHAPES), density: float = 0.3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.random(SHAPES[name]) < density for name in names}


def region(arrays: dict[str, np.ndarray], **kwargs) -> Region:
    return Region.from_masks({name: torch.from_numpy(a) for name, a in arrays.items()}, **kwargs)


def model() -> nn.Module:
    net = nn.Module()
    net.embed = nn.Embedding(40, 10)
    net.layers = nn.ModuleList(nn.Linear(10, 10) for _ in range(3))
    net.head = nn.Linear(10, 40, bias=False)
    net.head.weight = net.embed.weight
    return net


def test_masks_and_indices_come_back():
    arrays = masks(0)
    made = region(arrays)
    assert list(made) == made.names == sorted(SHAPES)
    assert made.shapes == {name: SHAPES[name] for name in made}
    assert made.count == sum(array.sum() for array in arrays.values())
    assert made.numel == sum(array.size for array in arrays.values())
    assert made.nbytes == sum(entries.nbytes for entries in made.values())
    for name, array in arrays.items():
        np.testing.assert_array_equal(made.masks()[name].numpy(), array)
        np.testing.assert_array_equal(made.indices(name).numpy(), np.flatnonzero(array))


@pytest.mark.parametrize("names", [tuple(SHAPES), ("head", "layers.0.w"), ()])
def test_algebra_equals_numpy_with_absent_parameters_as_empty(names):
    left, right = masks(1), masks(2, names)
    none = {name: np.zeros(shape, bool) for name, shape in SHAPES.items()}
    a, b = region(left), region(right)
    for got, operation in [
        (a | b, lambda x, y: x | y),
        (a & b, lambda x, y: x & y),
        (a - b, lambda x, y: x & ~y),
        (b - a, lambda x, y: y & ~x),
        (a ^ b, lambda x, y: x ^ y),
    ]:
        expected = {name: operation(left[name], {**none, **right}[name]) for name in SHAPES}
        assert got.names == sorted(SHAPES)
        for name in SHAPES:
            np.testing.assert_array_equal(got[name].mask().numpy(), expected[name])


def test_jaccard_compares_places_whatever_the_base():
    left, right = masks(1), masks(2)
    a = region(left, base=Base("one", None, "1" * 64))
    b = region(right, base=Base("two", None, "2" * 64))
    places = [
        {(name, i) for name, array in arrays.items() for i in np.flatnonzero(array)}
        for arrays in (left, right)
    ]
    wanted = len(places[0] & places[1]) / len(places[0] | places[1])
    assert a.jaccard(b) == b.jaccard(a) == pytest.approx(wanted)
    assert Region({}).jaccard(Region({"head": Entries.empty((11,))})) == 1.0
    with pytest.raises(UserError, match=r"'head': expected two sets of entries of one shape"):
        a.jaccard(Region({"head": Entries.empty((3, 5))}))


def test_equality_and_digest_are_of_the_set_alone():
    arrays = masks(3)
    a = region(arrays)
    b = region(dict(reversed(arrays.items())), base=Base("x", None, "f"), made={"seed": 1})
    assert a == b == Region({**a, "unused": Entries.empty((5,))})
    assert a.digest == b.digest == Region({**a, "unused": Entries.empty((5,))}).digest
    flipped = {name: array.copy() for name, array in arrays.items()}
    flipped["head"][0] ^= True
    renamed = {("tail" if name == "head" else name): array for name, array in arrays.items()}
    digests = {a.digest, region(flipped).digest, region(renamed).digest, Region({}).digest}
    assert len(digests) == 4
    assert a != region(flipped)


def test_operations_record_how_the_region_was_made():
    a, b = region(masks(1), made={"score": "taylor"}), region(masks(2))
    made = (a - b).made
    assert made["operation"] == "-"
    assert made["operands"] == [
        {"digest": a.digest, "made": {"score": "taylor"}},
        {"digest": b.digest, "made": {}},
    ]


def test_made_is_a_copy_and_must_be_json_able():
    made = {"languages": ["ar"]}
    a = Region({}, made=made)
    made["languages"].append("es")
    assert a.made == {"languages": ["ar"]}
    with pytest.raises(UserError, match="JSON-able"):
        Region({}, made={"mask": torch.zeros(1)})


def test_bases_are_kept_and_must_not_differ():
    first, second = Base("one", None, "1" * 64), Base("two", "main", "2" * 64)
    a, b, c = region(masks(1), base=first), region(masks(2), base=second), region(masks(3))
    assert (a | c).base == (c | a).base == first
    with pytest.raises(UserError, match="different base models: one and two"):
        a & b


def test_coverage_of_the_region_and_of_the_model():
    arrays = masks(4)
    got = region(arrays).coverage()
    assert got.tensors == {name: pytest.approx(array.mean()) for name, array in arrays.items()}
    zero = [arrays["layers.0.w"], arrays["layers.0.b"]]
    assert got.layers == {
        0: pytest.approx(sum(a.sum() for a in zero) / sum(a.size for a in zero)),
        2: pytest.approx(arrays["layers.2.w"].mean()),
    }
    total = sum(a.sum() for a in arrays.values()) / sum(a.size for a in arrays.values())
    assert got.model == pytest.approx(total)

    net = model()
    rows = Region.rows(net, {"layers.1.weight": [0, 4], "head.weight": [0, 1]})
    wrapped = nn.ModuleDict({"module": net})
    for got in (rows.coverage(net), rows.coverage(wrapped)):
        assert got.tensors["layers.1.weight"] == pytest.approx(0.2)
        assert got.tensors["embed.weight"] == pytest.approx(2 / 40)  # tied: once, first name
        assert "head.weight" not in got.tensors
        assert got.layers == {0: 0.0, 1: pytest.approx(20 / 110), 2: 0.0}
        assert got.model == pytest.approx((20 + 20) / (400 + 3 * 110))


def test_rows_columns_and_tensors_of_a_model():
    net = model()
    rows = Region.rows(net, {"embed.weight": torch.tensor([7, 3])}).masks()["embed.weight"]
    assert rows.any(1).nonzero().flatten().tolist() == [3, 7]
    assert rows[[3, 7]].all()
    columns = Region.columns(net, {"layers.0.weight": [9]}).masks()["layers.0.weight"]
    assert columns.sum() == 10
    assert columns[:, 9].all()
    assert Region.tensors(net, ["layers.*.bias"]).names == [f"layers.{i}.bias" for i in range(3)]
    assert Region.tensors(net, ["head.weight"]).names == ["embed.weight"]  # tied
    assert Region.tensors(net, ["*"]).count == sum(p.numel() for p in net.parameters())


def test_regions_of_a_partitioned_model_are_those_of_the_whole():
    """ZeRO-3 leaves parameters empty and notes their shape."""

    def regions(net: nn.Module) -> list[Region]:
        return [
            Region.rows(net, {"embed.weight": [7, 3]}),
            Region.columns(net, {"layers.0.weight": [9]}),
            Region.tensors(net, ["layers.*"]),
            Region.random(net, 0.3, seed=5),
            region_of(net, [Weight("layers.1.weight", (2, 3))]),
        ]

    partitioned = model()
    for parameter in partitioned.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    for own, whole in zip(regions(partitioned), regions(model()), strict=True):
        assert own.count
        assert own == whole


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.25, 0.5, 0.99, 1.0])
def test_random_takes_the_ratio_of_each_tensor_rounded_half_up(ratio):
    net = model()
    drawn = Region.random(net, ratio, seed=0)
    for name, parameter in net.named_parameters():
        assert drawn[name].count == int(np.floor(ratio * parameter.numel() + 0.5))


def test_random_is_seeded_per_name():
    net = model()
    drawn = Region.random(net, 0.2, seed=0)
    assert drawn == Region.random(net, 0.2, seed=0)
    assert drawn != Region.random(net, 0.2, seed=1)
    assert drawn["layers.0.weight"] != drawn["layers.1.weight"]
    alone = Region.random(net, 0.2, seed=0, parameters=["layers.1.*"])
    assert alone.names == ["layers.1.bias", "layers.1.weight"]
    assert alone["layers.1.weight"] == drawn["layers.1.weight"]
    assert Region.random(torch.compile(net), 0.2, seed=0) == drawn


def test_random_like_has_the_same_counts():
    a = region(masks(5))
    b = a.random_like(seed=0)
    assert {n: e.count for n, e in a.items()} == {n: e.count for n, e in b.items()}
    assert a != b
    assert b == a.random_like(seed=0) != a.random_like(seed=1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, net: a.indices("layers.0.v"), r"'layers.0.v' \(did you mean 'layers.0.w'"),
        (lambda a, net: a | Region({"head": Entries.whole((3,))}), r"'head': .*\[11\] and \[3\]"),
        (lambda a, net: Region.random(net, 1.5, seed=0), "0 to 1, got 1.5"),
        (lambda a, net: Region.random(net, float("nan"), seed=0), "0 to 1, got nan"),
        (
            lambda a, net: Region.random(net, 0.1, seed=0, parameters=["layer.0.weight"]),
            r"'layer.0.weight' \(did you mean 'layers.0.weight'",
        ),
        (lambda a, net: Region.tensors(net, ["norm.*"]), "matches 'norm"),
        (lambda a, net: Region.rows(net, {"embed.weigth": [0]}), "did you mean 'embed.weight'"),
        (lambda a, net: Region.rows(net, {"embed.weight": [40]}), "'embed.weight': rows .* got 40"),
        (lambda a, net: Region.columns(net, {"layers.0.bias": [0]}), "2 dimensions"),
        (lambda a, net: Region.from_masks({"x": torch.ones(2)}), "'x': .* torch.bool"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call(region(masks(0)), model())


@pytest.mark.parametrize("apply", [operator.or_, operator.and_, operator.sub, operator.xor])
def test_algebra_with_something_else_is_a_type_error(apply):
    with pytest.raises(TypeError):
        apply(Region({}), {})
