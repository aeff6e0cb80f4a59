"""Pulls that are timed are pulls, and the rows say what was found."""

import json
import sys

import pytest
import torch

from benchmarks import freezing_memory, pulling
from benchmarks.freezing_ways import (
    BOTH,
    BY_REGION,
    MAIN,
    NONE,
    PULL,
    PULLS,
    WEIGHED,
    WIDE,
    Way,
    adamw,
    apply,
    columns,
    ids_of,
    llama,
    step,
)
from benchmarks.harness import spread

pytestmark = pytest.mark.exhaustive

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
}


@pytest.mark.parametrize("name", PULLS)
def test_a_way_pulls_as_it_says(name):
    """At a learning rate at which it shows: 20 x 0.01 of the way, 100 x 0.01 of it in regions."""
    model = llama("cpu", **SIZES)
    start = {key: value.detach().clone() for key, value in model.named_parameters()}
    base = {key: value.bfloat16().float() for key, value in start.items()}
    way = apply(name, Way(model, adamw(model)))
    assert bool(way.count) == (name == BOTH)
    plain = Way(other := llama("cpu", **SIZES), adamw(other))
    for each in (way, plain):
        each.optimizer.param_groups[0]["lr"] = 0.01
        step(each, ids_of(model, 1, (2, 8)))
    share = {key: torch.full_like(value, 0.2) for key, value in start.items()}
    if name == BY_REGION:
        for key, mask in columns(model).masks().items():
            share[key][mask] = 1.0
    held = way.handle.region.masks() if name == BOTH else {}
    for key, moved in other.named_parameters():
        to = start[key] if name == WIDE else base[key]
        expected = moved + share[key] * (to - moved)
        if key in held:
            expected = expected.where(~held[key], start[key])
        # A freeze changes the norm that clipping takes, and AdamW all but undoes that.
        torch.testing.assert_close(model.get_parameter(key), expected, atol=1e-4, rtol=0)


def test_what_is_measured_is_told():
    sizes = {**SIZES, "hidden_size": 32}
    timed = pulling.measured("cpu", 2, sizes, (1, 8))
    assert set(timed["whole"]) == set(timed["own"]) == {NONE, MAIN, *PULLS}
    assert all(second > 0 for name in PULLS for second in timed["own"][name])
    plain = [1.0, 1.0]
    for name in timed["whole"]:
        timed["whole"][name], timed["own"][name] = plain, [0.02, 0.02]
        timed["ratios"][name] = spread([1.5, 1.5])
    timed["optimizer"] = [0.1, 0.1]
    ways = {PULL: {"parameters": 1000}}
    added = {PULL: {"rest": 2000, "step": 2500, "optimizer": 3000}}
    noise = dict.fromkeys(freezing_memory.MOMENTS, 10)
    held = {"ways": ways, "added": added, "noise": noise}
    rows = {
        row.what: row.figure
        for row in pulling.rows(json.loads(json.dumps({"time": timed, "memory": held})))
    }
    expected = "1.0200: 20.0 (20.0 to 20.0) ms, 0.20 of AdamW's step; whole steps 1.500"
    assert rows[WEIGHED].startswith(expected)
    memory = "bytes a weight: 2.00 at rest, 2.50 at a step's peak, 3.00 at the optimizer's (± 0.01)"
    assert rows[f"{PULL}: memory"] == memory


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_one_process_that_pulls():
    told = freezing_memory.child(WIDE, {**SIZES, "hidden_size": 512}, (1, 8))
    assert told["rest"][1] - told["rest"][0] == pytest.approx(4 * told["parameters"], rel=0.2)
