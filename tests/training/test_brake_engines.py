"""`freezetrain train` with a brake, on two ranks under every engine, stopped and resumed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_runs import Run, start
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from freezetrain.freezing import compare_weights
from freezetrain.nll import token_nll
from freezetrain.regions import Region

SPLIT = ("zero-2", "zero-3")  # zero-1 goes the way of zero-2


@pytest.fixture(scope="module")
def base(tmp_path_factory, make_model, tokenizer, udhr) -> Path:
    """A tiny model that knows some English, to have something to forget."""
    folder = tmp_path_factory.mktemp("base")
    model = make_model()
    ids = torch.tensor(tokenizer(" ".join(udhr["en"].train))["input_ids"])
    rows = ids[: len(ids) // 64 * 64].view(-1, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(60):
        batch = rows[torch.arange(8 * step, 8 * step + 8) % len(rows)]
        token_nll(model(input_ids=batch).logits, batch).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    Region.random(model, 0.2, seed=3).save(folder / "region.safetensors")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def recipe(base) -> dict:
    return {
        "model": {"path": str(base / "model")},
        "languages": ["zh"],
        "region": str(base / "region.safetensors"),
        "optimization": {
            "max_steps": 8,
            "sequence_length": 32,
            "micro_batch": 2,
            "batch_tokens": 128,
            "learning_rate": 0.02,
            "schedule": "constant",
            "warmup_steps": 0,
        },
        "watch": {"languages": ["en", "zh", "es"], "every_n_steps": 2, "max_length": 64},
        "checkpoint_every": 100,
        "workers": 1,
    }


def settings(recipe: dict, **changes) -> dict:
    return {**recipe["optimization"], **changes}


@pytest.fixture(scope="module")
def brake(recipe, tmp_path_factory) -> dict:
    """A limit of what English may lose, between what it has lost after 4 and after 6 steps."""
    run = Run(tmp_path_factory.mktemp("alone") / "run", recipe)
    start(run, world=1)
    lost = [
        evaluation["forgetting"]["languages"]["en"]["relative"] for evaluation in run.evaluations
    ]
    assert 0 == lost[0] < lost[1] < 1.2 * lost[2] < lost[3], lost
    return {"limits": {"en": (lost[2] + lost[3]) / 2}, "action": "roll_back"}


def pair(recipe: dict, brake: dict, folder: Path, kind: str) -> tuple[Run, Run]:
    """Four steps without a brake, which a run with it is rolled back to."""
    recipe = {**recipe, "engine": {"kind": kind}}
    four = Run(folder / "four", {**recipe, "optimization": settings(recipe, max_steps=4)})
    return four, Run(folder / "run", {**recipe, "brake": brake})


def check_rolled_back(run: Run) -> None:
    results = run.results
    brake = results["brake"]
    assert (brake["ended_at_step"], brake["model_step"], results["steps"]) == (6, 4, 6)
    assert [(breach["step"], breach["name"]) for breach in brake["breaches"]] == [(6, "en")]
    assert brake["breaches"][0]["value"] > brake["limits"]["en"]
    assert results["forgetting"]["languages"]["en"]["relative"] < brake["limits"]["en"]


def assert_equal(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name


@pytest.mark.parametrize(
    "kind", [pytest.param("ddp", marks=pytest.mark.exhaustive), "fsdp2", "zero-2", "zero-3"]
)
def test_the_model_is_that_of_the_last_step_within_the_limits(recipe, brake, tmp_path, kind):
    four, run = pair(recipe, brake, tmp_path, kind)
    start(four, run, world=2)
    check_rolled_back(run)
    assert_equal(run.weights, four.weights)
    AutoModelForCausalLM.from_pretrained(run.folder / "model")
    assert [p.name for p in (run.folder / "checkpoints").iterdir()] == ["step=6.ckpt"]
    assert [p.name for p in (run.folder / "kept").iterdir()] == ["step=4.ckpt"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", *SPLIT])
def test_rolled_back_to_what_another_number_of_ranks_has_kept(recipe, brake, tmp_path, kind):
    """One rank keeps step 4 and is stopped after 5; two go on, and back to what it has kept."""
    four, run = pair(recipe, brake, tmp_path, kind)
    start(four, world=1)
    start(run, world=1, stop_in=5)
    start(run, world=2)
    check_rolled_back(run)
    assert run.results["resumed_from"] == "step=5.ckpt"
    assert_equal(run.weights, four.weights)


@pytest.mark.parametrize("kind", [pytest.param("zero-2", marks=pytest.mark.exhaustive), "zero-3"])
def test_rolled_back_to_what_two_ranks_kept_after_one_had_begun(recipe, brake, tmp_path, kind):
    """The engine was made for a converted checkpoint, and what is gone back to is none."""
    four, run = pair(recipe, brake, tmp_path, kind)
    start(four, world=2)
    start(run, world=1, stop_in=3)
    start(run, world=2)
    check_rolled_back(run)
    assert run.results["resumed_from"] == "step=3.ckpt"
    weights = run.weights
    for name, value in four.weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("kind", [pytest.param("zero-2", marks=pytest.mark.exhaustive), "zero-3"])
def test_frozen_entries_are_the_bases_also_where_masters_were_rounded(
    recipe, brake, base, tmp_path, kind
):
    """Back to the base, which DeepSpeed's masters hold exactly only once the freeze has begun."""
    _, run = pair(recipe, {**brake, "limits": {"worst": 1e-6}}, tmp_path, kind)
    run = replace(
        run, recipe={**run.recipe, "optimization": settings(recipe, precision="bf16-mixed")}
    )
    start(run, world=2)
    results = run.results["brake"]
    assert (results["ended_at_step"], results["model_step"]) == (2, 0)
    region = Region.load(recipe["region"])
    compared = compare_weights(load_file(base / "model" / "model.safetensors"), run.weights, region)
    assert (compared.moved, compared.checked) == (0, region.count)
