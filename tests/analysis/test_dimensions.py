"""Where regions lie, by plain loops, in Llama and in GPT-2, which stores matrices transposed."""

import itertools

import pytest
import torch
from decoders import tiny_gpt2

from freezetrain.analysis.dimensions import find_dimensions, region_place
from freezetrain.regions import Region


def some_region(model):
    masks = {
        name: torch.rand(p.shape, generator=torch.manual_seed(len(name))) < 0.1
        for name, p in model.named_parameters()
        if p.ndim == 2 and (".h." in name or ".layers." in name)
    }
    for mask in masks.values():
        mask[3] |= mask[4]
        mask[::3, 2] = True
    return Region.from_masks(masks)


def share(counts, top):
    fullest = sorted(counts, reverse=True)[: max(1, int(top * len(counts) + 0.5))]
    return sum(fullest) / sum(counts)


def gini(counts):
    differences = sum(abs(a - b) for a, b in itertools.product(counts, counts))
    return differences / (2 * len(counts) * sum(counts))


@pytest.mark.parametrize("transposed", [False, True])
def test_tables_against_plain_loops(transposed, make_model):
    model = tiny_gpt2() if transposed else make_model()
    region = some_region(model)
    found = find_dimensions({"one": region}, model, top=0.1)
    seen = 0
    for name, mask in region.masks().items():
        places = mask.nonzero().tolist()
        outputs, inputs = (1, 0) if transposed else (0, 1)
        parts = name.removesuffix(".weight").split(".")
        layer, kind = int(parts[2]), ".".join(parts[3:])
        for direction, axis in (("rows", outputs), ("columns", inputs)):
            counts = [0] * mask.shape[axis]
            for place in places:
                counts[place[axis]] += 1
            place = found.regions["one"]
            assert place.shares(direction)[layer][kind] == pytest.approx(share(counts, 0.1)), name
            unevenness = getattr(place, f"gini_{direction}")[layer][kind]
            assert unevenness == pytest.approx(gini(counts)), name
            seen += 1
    assert seen == 2 * (8 if transposed else 14)
    assert found.layers == [0, 1]
    assert len(found.matrices) == (4 if transposed else 7)


def test_what_is_said_of_all_regions(model):
    region = some_region(model)
    other = region.random_like(7)
    found = find_dimensions({"one": region, "two": other}, model, top=0.1, seed=5, shown=3)
    control = find_dimensions({"c": region.random_like(5)}, model, top=0.1).regions["c"]
    values = [value for by_kind in control.rows.values() for value in by_kind.values()]
    assert found.regions["one"].even["rows"] == pytest.approx(sum(values) / len(values))
    one, two = (found.regions[name].even["gini_rows"] for name in ("one", "two"))
    assert found.even["gini_rows"] == pytest.approx((one + two) / 2)
    assert found.possible == 28
    assert found.expected == pytest.approx(28 * 2 / 16)
    assert len(found.recurring) == 3
    assert found.recurring[0].times >= found.recurring[1].times
    assert found.directions == {
        "self_attn.q_proj": "columns", "self_attn.k_proj": "columns",
        "self_attn.v_proj": "columns", "self_attn.o_proj": "rows",
        "mlp.gate_proj": "columns", "mlp.up_proj": "columns", "mlp.down_proj": "rows",
    }  # fmt: skip


def test_a_matrix_without_entries_is_left_out(model):
    name = "model.layers.1.mlp.up_proj.weight"
    region = Region.rows(model, {name: [4]})
    tables = find_dimensions({"one": region}, model).regions["one"]
    assert tables.rows == {1: {"mlp.up_proj": 1.0}}
    assert tables.columns == {1: {"mlp.up_proj": 1 / 16}}


def test_the_picture_is_drawn_as_the_layer_multiplies():
    """Output feature 7 of c_fc is a column of the stored tensor, and a row of the picture."""
    model = tiny_gpt2()
    mask = torch.zeros(16, 24, dtype=torch.bool)
    mask[:12, 7] = True
    region = Region.from_masks({"transformer.h.1.mlp.c_fc.weight": mask})
    found = region_place(region, region.random_like(0), model)
    assert found.picture.name == "transformer.h.1.mlp.c_fc"
    assert found.picture.shape == [24, 16]
    assert found.picture.rows == [7] * 12
    assert found.picture.columns == list(range(12))
    assert found.rows[1]["mlp.c_fc"] == 1.0
    assert found.entries == 12


def test_no_matrix_no_picture(model):
    region = Region.tensors(model, ["*input_layernorm*"])
    found = region_place(region, region, model)
    assert found.picture is None
    assert found.even == {"rows": 0.0, "columns": 0.0}
