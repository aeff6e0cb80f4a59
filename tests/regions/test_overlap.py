"""Regions compared: against Python's sets of (parameter, index) pairs."""

import random

import pytest
import torch
from largest_tensor import Largest

from freezetrain.errors import UserError
from freezetrain.regions import Base, Entries, Region, overlap
from freezetrain.regions.overlap import expected_jaccard, jaccard_matrix, kind_of, shares

SHAPES = {
    "model.layers.0.self_attn.q_proj.weight": (12, 9),
    "model.layers.0.mlp.down_proj.weight": (5, 40),
    "model.layers.1.mlp.down_proj.weight": (5, 40),
    "lm_head.weight": (7, 8),
}


def pairs(region):
    return {
        (name, place)
        for name, entries in region.items()
        for place in entries.mask().flatten().nonzero().flatten().tolist()
    }


def drawn(seed, names=SHAPES):
    """A region of every kind of entries: indices, bits, rows, columns, all, none."""
    draw = torch.Generator().manual_seed(seed)
    entries = {}
    for number, name in enumerate(names):
        shape = SHAPES[name]
        match (number + seed) % 6:
            case 0 | 1:
                share = (0.02, 0.4)[(number + seed) % 2]
                entries[name] = Entries.from_mask(torch.rand(shape, generator=draw) < share)
            case 2:
                entries[name] = Entries.from_rows(shape, [seed % shape[0]])
            case 3:
                entries[name] = Entries.from_columns(shape, [seed % shape[1], 0][: 1 + seed % 2])
            case 4:
                entries[name] = Entries.whole(shape)
            case 5:
                entries[name] = Entries.empty(shape)
    return Region(entries, Base(None, None, str(seed)))


@pytest.mark.parametrize("way", ["from_rows", "from_columns"])
def test_rows_and_columns_are_compared_as_such(way):
    """Of an embedding of many rows not every entry is counted."""
    shape = (3000, 200)
    make = getattr(Entries, way)
    held = {"a": [0, 5, 7, 100], "b": [5, 100, 101], "c": []}
    regions = {
        name: Region({"embed": make(shape, own)}, Base(None, None, name))
        for name, own in held.items()
    }
    alone = Region({"other": Entries.whole((4000, 200))}, Base(None, None, "d"))
    with Largest() as largest:
        matrix = jaccard_matrix({**regions, "d": alone})
    assert matrix[0] == [1.0, 2 / 5, 0.0, 0.0]
    assert matrix[3] == [0.0, 0.0, 0.0, 1.0]
    assert largest.values < 1000


@pytest.mark.parametrize("chunk", [1 << 18, 7])
def test_jaccard_is_that_of_sets(monkeypatch, chunk):
    monkeypatch.setattr(overlap, "_CHUNK", chunk)
    names = list(SHAPES)
    regions = {f"r{seed}": drawn(seed) for seed in range(7)}
    regions |= {"some": drawn(3, names[1:]), "other": drawn(2, names[:1]), "none": Region({})}
    matrix = jaccard_matrix(regions)
    for row, a in zip(matrix, regions.values(), strict=True):
        for value, b in zip(row, regions.values(), strict=True):
            both, either = pairs(a) & pairs(b), pairs(a) | pairs(b)
            assert value == (len(both) / len(either) if either else 1.0)


def test_parameters_of_other_shapes_are_refused():
    name = "lm_head.weight"
    regions = {"a": Region({name: Entries.whole((2, 3))}), "b": Region({name: Entries.whole((3,))})}
    with pytest.raises(UserError, match=r"lm_head.weight.*\[2, 3\] in 'a' and \[3\] in 'b'"):
        jaccard_matrix(regions)


def test_expected_jaccard_is_what_random_sets_have():
    sizes = {"x": (60, 20, 30), "y": (400, 8, 100), "z": (50, 10, 0)}
    a, b = (
        Region({name: Entries.from_indices((n[0],), range(n[side])) for name, n in sizes.items()})
        for side in (1, 2)
    )
    b = Region({name: entries for name, entries in b.items() if name != "z"})
    draw = random.Random(0)
    tried = []
    for _ in range(3000):
        first, second = (
            {(k, i) for k, n in sizes.items() for i in draw.sample(range(n[0]), n[side])}
            for side in (1, 2)
        )
        tried.append(len(first & second) / len(first | second))
    assert expected_jaccard(a, b) == pytest.approx(sum(tried) / len(tried), rel=0.01)
    assert expected_jaccard(Region({}), Region({})) == 1.0


def test_shares_by_layer_and_kind_follow_from_the_masks():
    region = drawn(0)
    by_layer, by_kind = {}, {}
    for name, entries in region.items():
        if "layers" in name:
            _, _, layer, *rest = name.split(".")
            by_layer.setdefault(int(layer), []).append(entries.mask().flatten())
            by_kind.setdefault(".".join(rest[:-1]), []).append(entries.mask().flatten())
    parts = shares(region)
    assert parts.by_layer == {k: torch.cat(v).double().mean().item() for k, v in by_layer.items()}
    assert parts.by_kind == {k: torch.cat(v).double().mean().item() for k, v in by_kind.items()}
    more = {name: entries.numel for name, entries in region.items()}
    more["model.layers.1.mlp.up_proj.weight"] = 1000
    parts = shares(region, more)
    assert parts.by_kind["mlp.up_proj"] == 0
    count = sum(e.count for n, e in region.items() if ".1." in n)
    assert parts.by_layer[1] == count / 1200


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.mlp.experts.11.down_proj.weight", "mlp.experts.*.down_proj"),
        ("transformer.h.10.attn.c_attn.bias", "attn.c_attn.bias"),
        ("layers.2.self_attn.q_proj.weight", "self_attn.q_proj"),
        ("layers.2.experts.gate_up_proj", "experts.gate_up_proj"),
    ],
)
def test_kinds_are_named_within_the_layer(name, kind):
    assert kind_of(name) == kind
