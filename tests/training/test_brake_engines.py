"""`freezetrain train` with a brake, on two ranks under every engine, killed and resumed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from worker_runs import one_rank, two_ranks, words

from freezetrain.freezing import compare_weights
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.nll import token_nll
from freezetrain.regions import Region


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


def of_four_steps(recipe: dict) -> dict:
    return {**recipe, "optimization": {**recipe["optimization"], "max_steps": 4}}


def results(folder: Path, name: str) -> dict:
    return json.loads((folder / name / "results.json").read_text())


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    held = WeightsFolder(folder / name / "model")
    return {key: held[key] for key in held}


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


@pytest.fixture(scope="module")
def brake(recipe, tmp_path_factory) -> dict:
    """A limit of what English may lose, between what it has lost after 4 and after 6 steps."""
    folder = tmp_path_factory.mktemp("alone")
    one_rank([words(recipe, folder, "whole")])
    told = json.loads((folder / "whole" / "forgetting.json").read_text())
    lost = [one["forgetting"]["languages"]["en"]["relative"] for one in told["evaluations"]]
    assert 0 == lost[0] < lost[1] < 1.2 * lost[2] < lost[3], lost
    return {"limits": {"en": (lost[2] + lost[3]) / 2}, "action": "roll_back"}


ENGINES = ("ddp", "fsdp2", "zero-2", "zero-3")  # zero-1 goes the way of zero-2
SPLIT = ("zero-2", "zero-3")


def in_16_bits(recipe: dict, brake: dict, kind: str) -> dict:
    """Rolled back to the base."""
    return {
        "engine": {"kind": kind},
        "optimization": {**recipe["optimization"], "precision": "bf16-mixed"},
        "brake": {**brake, "limits": {"worst": 1e-6}},
    }


@pytest.fixture(scope="module")
def together(recipe, brake, tmp_path_factory) -> Path:
    """Two ranks: four steps without a brake; until they are rolled back to those; in 16 bits."""
    folder = tmp_path_factory.mktemp("together")
    runs = []
    for kind in ENGINES:
        engine = {"kind": kind}
        runs.append(words(of_four_steps(recipe), folder, f"{kind}-four", engine=engine))
        runs.append(words(recipe, folder, kind, engine=engine, brake=brake))
    for kind in SPLIT:
        runs.append(words(recipe, folder, f"{kind}-16", **in_16_bits(recipe, brake, kind)))
    two_ranks(folder, runs)
    return folder


def check_told(told: dict) -> None:
    brake = told["brake"]
    assert (brake["ended_at_step"], brake["model_step"], told["steps"]) == (6, 4, 6)
    assert [(one["step"], one["name"]) for one in brake["breaches"]] == [(6, "en")]
    assert brake["breaches"][0]["value"] > brake["limits"]["en"]
    assert told["forgetting"]["languages"]["en"]["relative"] < brake["limits"]["en"]


@pytest.mark.parametrize("kind", ENGINES)
def test_the_model_is_that_of_the_last_step_within_the_limits(together, kind):
    check_told(results(together, kind))
    assert not differ(weights(together, f"{kind}-four"), weights(together, kind))
    AutoModelForCausalLM.from_pretrained(together / kind / "model")


@pytest.mark.parametrize("kind", ENGINES)
def test_the_last_step_is_in_the_checkpoint_all_the_same(together, kind):
    assert [p.name for p in (together / kind / "checkpoints").iterdir()] == ["step=6.ckpt"]
    assert [p.name for p in (together / kind / "kept").iterdir()] == ["step=4.ckpt"]


@pytest.fixture(scope="module")
def resumed(recipe, brake, tmp_path_factory) -> Path:
    """One rank keeps step 4 and is stopped after 5; two go on, and back to what it has kept.

    ``early``: one is stopped after 3, and it is two that keep step 4.
    """
    folder = tmp_path_factory.mktemp("resumed")
    alone, both = [], []
    for kind in ENGINES:
        engine = {"kind": kind}
        alone.append(words(of_four_steps(recipe), folder, f"{kind}-four", engine=engine))
        alone.append(words(recipe, folder, kind, 5, engine=engine, brake=brake))
        both.append(words(recipe, folder, kind, engine=engine, brake=brake))
    for kind in SPLIT:
        changes = {"engine": {"kind": kind}, "brake": brake}
        alone.append(words(recipe, folder, f"{kind}-early", 3, **changes))
        both.append(words(recipe, folder, f"{kind}-early", **changes))
    one_rank(alone)
    two_ranks(folder, both)
    return folder


@pytest.mark.parametrize("kind", ENGINES)
def test_rolled_back_to_what_another_number_of_ranks_has_kept(resumed, kind):
    told = results(resumed, kind)
    check_told(told)
    assert told["resumed_from"] == "step=5.ckpt"
    assert not differ(weights(resumed, f"{kind}-four"), weights(resumed, kind))


@pytest.mark.parametrize("kind", SPLIT)
def test_rolled_back_to_what_two_ranks_kept_after_one_had_begun(resumed, together, kind):
    """The engine was made for a converted checkpoint, and what is gone back to is none."""
    told = results(resumed, f"{kind}-early")
    check_told(told)
    assert told["resumed_from"] == "step=3.ckpt"
    found = weights(resumed, f"{kind}-early")
    for name, value in weights(together, f"{kind}-four").items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("kind", SPLIT)
def test_frozen_entries_are_the_bases_also_where_masters_were_rounded(together, recipe, base, kind):
    """Back to the base, which DeepSpeed's masters hold exactly only once the freeze has begun."""
    told = results(together, f"{kind}-16")["brake"]
    assert (told["ended_at_step"], told["model_step"]) == (2, 0)
    region = Region.load(recipe["region"])
    before = load_file(base / "model" / "model.safetensors")
    compared = compare_weights(before, weights(together, f"{kind}-16"), region)
    assert (compared.moved, compared.checked) == (0, region.count)
