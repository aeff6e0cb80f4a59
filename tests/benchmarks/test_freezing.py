"""What is timed is what a step does, and the tables of freezing say what was found."""

import gzip
import json
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from benchmarks import freezing, freezing_added, freezing_memory
from benchmarks.freezing_added import FREEZING, Clock, mask, profiled, totals, turn
from benchmarks.freezing_ways import (
    COMPETITORS,
    MAIN,
    NONE,
    REGIONS,
    RESTORE,
    Way,
    adamw,
    apply,
    columns,
    elements,
    ids_of,
    llama,
    matrices,
    step,
    tensors,
    touched,
    twins,
)
from benchmarks.harness import spread
from freezetrain.regions import Region

pytestmark = pytest.mark.exhaustive

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
}


@pytest.fixture
def model():
    return llama("cpu", **SIZES)


@pytest.fixture(scope="module")
def found():
    sizes = {**SIZES, "hidden_size": 32, "num_hidden_layers": 1}
    tiny = freezing.measured("cpu", 2, sizes, (1, 4), width=32, long_rounds=2)
    return json.loads(json.dumps(tiny))


def test_regions_are_of_the_decoder_matrices_alone(model):
    names = matrices(model)
    assert len(names) == 2 * 7
    assert all(model.get_parameter(name).ndim == 2 and "layers" in name for name in names)
    every = sum(model.get_parameter(name).numel() for name in names)
    assert elements(model, 0.05).count == pytest.approx(0.05 * every, rel=0.01)
    assert columns(model).count == every / 2
    assert list(tensors(model)) == sorted(names[::2])


def test_touched_is_the_hand_count():
    # Lines of 16 fp32 values: 0 1 15 lie in the first, 16 in the second, 63 in the fourth.
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(4, 16))})
    indices = torch.tensor([0, 1, 15, 16, 63])
    region = Region.from_masks(
        {"a": torch.zeros(64, dtype=torch.bool).index_fill_(0, indices, True).view(4, 16)}
    )
    assert region.nbytes == 64 / 8  # as bits
    assert touched(region, 4, 64) == {"lines": 3, "bytes": 5 * 64 * 3 + 3 * 8}
    assert touched(region, 2, 32)["lines"] == 3
    assert touched(region, 4, 32)["lines"] == 4  # 15 lies alone then
    assert touched(Region.tensors(model, ["a"]), 4, 64) == {"lines": 4, "bytes": 5 * 64 * 4}


def test_twins_share_memory_and_no_hooks_and_nothing_moves(model):
    optimizer = adamw(model)
    batches = ids_of(model, 2, (2, 8))
    step(Way(model, optimizer), batches)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    ways = twins([NONE, MAIN, *COMPETITORS], model, optimizer)
    region = elements(model, 0.01)
    for name, way in ways.items():
        step(way, batches)
        for key, parameter in way.model.named_parameters():
            own = model.get_parameter(key)
            assert parameter is not own
            assert parameter.data_ptr() == own.data_ptr()
            moments = way.optimizer.state[parameter]["exp_avg"]
            assert moments.data_ptr() == optimizer.state[own]["exp_avg"].data_ptr()
            assert torch.equal(parameter, start[key])
            if key in region:
                gradients = region[key].read(parameter.grad)
                assert bool(gradients.any()) == (name in (NONE, RESTORE))
    assert ways[MAIN].handle.verify() == region.count


@pytest.mark.parametrize("name", REGIONS)
def test_mask_leaves_what_backward_leaves(model, name):
    way = apply(name, Way(model, adamw(model)))
    gradients = {key: torch.randn_like(p) for key, p in model.named_parameters()}
    for key, parameter in model.named_parameters():
        parameter.grad = gradients[key].clone()
    mask(model.parameters())
    masks = way.handle.region.masks()
    for key, parameter in model.named_parameters():
        frozen = masks.get(key, torch.zeros_like(parameter, dtype=torch.bool))
        assert torch.equal(parameter.grad, gradients[key].masked_fill(frozen, 0))


def test_mask_gives_a_hook_what_the_one_before_it_made():
    parameter = nn.Parameter(torch.ones(3))
    seen = []
    parameter.register_hook(lambda gradient: 2 * gradient)
    parameter.register_hook(lambda gradient: seen.append(gradient))
    parameter.register_post_accumulate_grad_hook(lambda owner: seen.append(owner.grad))
    parameter.grad = torch.ones(3)
    mask([parameter, nn.Parameter(torch.ones(2))])
    assert [values.tolist() for values in seen] == [[2, 2, 2], [1, 1, 1]]


@pytest.mark.parametrize("name", [NONE, *REGIONS, RESTORE])
def test_a_turn_does_what_a_step_of_the_optimizer_does(model, name):
    ways = [apply(name, Way(m, adamw(m, rate=1e-2))) for m in (model, deepcopy(model))]
    start = {key: p.detach().clone() for key, p in model.named_parameters()}
    clock = Clock("cpu")
    for turns, way in enumerate(ways):
        torch.manual_seed(1)
        for parameter in way.model.parameters():
            parameter.grad = torch.randn_like(parameter)
        if turns:
            turn(way, clock)
        else:
            mask(way.model.parameters())
            way.optimizer.step()
            way.after()
    for key, parameter in ways[0].model.named_parameters():
        assert torch.equal(parameter, ways[1].model.get_parameter(key))
        assert name == "half of the matrices" or not torch.equal(parameter, start[key])
    assert set(clock.turns[0]) == {"mask", "guard", "optimizer", "after"}


def test_totals_count_masks_by_micro_step_and_the_guard_once():
    parts = {
        "mask": [1.0, 2.0],
        "after": [0.5, 0.0],
        "guard": [10.0, 20.0],
        "optimizer": [7.0, 7.0],
    }
    assert totals({"seconds": {"way": parts}}, 16) == {"way": [34.0, 52.0]}


def test_profile_finds_the_freeze_and_leaves_the_hooks(model, tmp_path):
    way = apply(MAIN, Way(model, adamw(model)))
    before = {id(hook) for hook in _hooks(way)}
    trace = tmp_path / "results" / "trace.json.gz"
    told = profiled(way, ids_of(model, 1, (2, 8)), "cpu", trace)
    assert {id(hook) for hook in _hooks(way)} == before
    assert 0 < told["freezing"] < told["all"]
    assert any("mm" in name for name in told["top"])
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    # One a matrix, and one before and one after the step.
    assert sum(event.get("name") == FREEZING for event in events) >= len(matrices(model)) + 2
    none = profiled(Way(m := llama("cpu", **SIZES), adamw(m)), ids_of(m, 1, (2, 8)), "cpu")
    assert none["freezing"] == 0


def _hooks(way):
    tables = [way.optimizer._optimizer_step_pre_hooks, way.optimizer._optimizer_step_post_hooks]
    for parameter in way.model.parameters():
        tables += [parameter._backward_hooks or {}, parameter._post_accumulate_grad_hooks or {}]
    return [hook for table in tables for hook in table.values()]


def test_all_ways_are_timed(found):
    for of, ways in ((found["added"], freezing.WAYS), (found["whole"]["1"], freezing.WAYS)):
        assert set(of["seconds"]) == set(ways)
    assert set(found["whole"]["16"]["seconds"]) == {NONE, MAIN, RESTORE}
    frozen = found["tensors"]["frozen"]
    assert frozen[MAIN] == 8 * 10  # of 32 by 32
    assert frozen["50% of the columns"] == frozen["half of the matrices"] == 8 * 512


def with_times(found, seconds, whole=1.0):
    """As if a step took 1 s, and each part of the work of freezetrain's ways ``seconds``."""
    found = deepcopy(found)
    plain = [1.0] * 2
    for accumulation in ("1", "16"):
        of = found["whole"][accumulation]
        of["seconds"][NONE] = plain
        of["ratios"] = {name: spread([whole] * 2) for name in of["ratios"]}
    for of in (found["added"], found["tensors"]):
        for name, parts in of["seconds"].items():
            own = 0.06 if name in COMPETITORS else seconds
            parts.update(mask=[own] * 2, guard=[own] * 2, after=[0.0] * 2, optimizer=plain)
        of["bytes_per_second"] = spread([1e9] * 2)
        of["summary"] = freezing_added.summary(of)
    return found


def verdicts(rows, starting):
    return {row.what: row.met for row in rows if row.goal and row.what.startswith(starting)}


def test_rows_tell_goals_met_from_missed(found):
    names = tuple(REGIONS)
    good = freezing.rows(with_times(found, 0.001))
    assert len(verdicts(good, names)) == len(names) + 1  # and by a step of AdamW
    assert all(verdicts(good, names).values())
    assert all(verdicts(good, RESTORE).values())
    # 0.016 s more in a second is too much for 1%, and for it alone.
    middling = freezing.rows(with_times(found, 0.008))
    missed = [row for row in middling if row.met is False]
    assert {row.what for row in missed if not row.what.startswith("8 matrices")} == {
        MAIN,
        f"{MAIN}, by a step of AdamW",
        f"{RESTORE}, by freezetrain's time",
    }
    assert all(row.note for row in missed)
    assert "masks take 8.0 ms and the guard 8.0" in next(r for r in missed if r.what == MAIN).note
    bad = freezing.rows(with_times(found, 0.02))
    assert not any(verdicts(bad, names).values())


def test_whole_steps_beyond_all_noise_miss_the_goal(found):
    rows = freezing.rows(with_times(found, 0.001, whole=1.2))
    assert not any(row.met for row in rows if row.what in REGIONS)
    assert "whole steps" in rows[1].note


def test_share_and_times_follow_from_the_seconds(found):
    rows = {row.what: row.figure for row in freezing.rows(with_times(found, 0.001))}
    assert rows[MAIN].startswith("1.0020: 2.0 (2.0 to 2.0) ms; whole steps 1.000")
    least = found["added"]["floor"][MAIN]["bytes"] / 1e9
    assert f"{0.002 / least:.1f} times the floor" in rows[MAIN]
    assert rows[f"{RESTORE}, by freezetrain's time"].startswith("60.0 (60.0 to 60.0) times")


def test_gpu_rows_without_a_known_peak(found):
    gpu = {
        "tokens_per_second": {NONE: 2000.0, MAIN: 1990.0},
        "utilization": {NONE: None, MAIN: 0.412},
        "profile": {"all": 0.5, "freezing": 0.001, "top": {}},
    }
    rows = freezing.rows({**found, "gpu": gpu})
    told = [row.figure for row in rows]
    assert "2,000 tokens/s, model FLOPs utilization unknown" in told
    assert "1,990 tokens/s, model FLOPs utilization 41.2%" in told
    assert "1.00 of 500.0 ms: 0.20%" in told


def memory_found(rest, peak, noise=0):
    ways = [MAIN, freezing_memory.DEFAULT, RESTORE]
    return {
        "noise": dict.fromkeys(freezing_memory.MOMENTS, noise),
        "ways": {name: {"frozen": 1000, "entries": 100_000, "tensors": 3990} for name in ways},
        "added": {
            name: {"rest": rest + 4000 * n, "step": peak + 4000 * n, "optimizer": peak + 4000 * n}
            for n, name in enumerate(ways)
        },
    }


def test_memory_rows_tell_goals_met_from_missed():
    main, default, restored = freezing_memory.rows(memory_found(4000, 8000))
    assert main.met
    assert "4.0 at rest, 8.0 at a step's peak" in main.figure
    assert default.met is False
    assert default.note.endswith("4.0 more")
    assert restored.goal == ""
    assert "a parameter of the matrices: 0.1 at rest" in restored.figure
    over = freezing_memory.rows(memory_found(4000, 9000))[0]
    assert over.met is False
    assert "1.0 at a step's peak" in over.note
    assert "take 3.99" in over.note
    assert freezing_memory.rows(memory_found(4000, 9000, noise=1000))[0].met


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_is_seen_and_its_peak_begun_anew():
    memory = freezing_memory._Resident()
    before = memory.now()
    memory.begin()
    held = torch.ones(2**24)
    assert memory.now() - before > 60e6
    del held
    assert memory.now() - before < 10e6
    assert memory.peak() - before > 60e6
    first = memory.peak()
    memory.begin()
    assert first - memory.peak() > 50e6


@pytest.mark.parametrize(("name", "an_entry"), [(MAIN, 4), ("half of the matrices", 0)])
def test_tensors_kept_at_rest_are_counted_once(model, name, an_entry):
    way = apply(name, Way(model, adamw(model)))
    assert freezing_memory._tensors(way.handle) == an_entry * way.count


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_one_process():
    told = freezing_memory.child(RESTORE, {**SIZES, "hidden_size": 384}, (1, 8))
    kept = told["rest"][1] - told["rest"][0]
    assert told["frozen"] == pytest.approx(0.01 * told["entries"], rel=0.01)
    # A bool mask and fp32 values; what else this process does is far less.
    assert kept == pytest.approx(5 * told["entries"], rel=0.2)
