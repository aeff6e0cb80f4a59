"""`freezetrain train` on two ranks under every engine: as on one, also stopped and resumed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from worker_runs import ENGINES, one_rank, two_ranks, words

from freezetrain.freezing import compare_weights
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.regions import Region

# What stays near the base: on one device and under DDP alone.
NEAR_BASE = {
    "L2": {"penalty": {"strength": 5.0}},
    "averaged": {"average_with_base": 0.5},
    "LoRA": {"lora": {"rank": 4}, "region": None},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, model_folder, make_model) -> dict:
    """Target, replay in the first half, documents apart, a region, evaluation, accumulation."""
    folder = tmp_path_factory.mktemp("recipe")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    Region.random(model, 0.2, seed=3).save(folder / "region.safetensors")
    return {
        "model": {"path": str(model_folder)},
        "languages": ["zh"],
        "replay": {"languages": ["en", "es"], "share": 0.25, "until": 0.5, "temperature": 2.0},
        "region": str(folder / "region.safetensors"),
        "optimization": {
            "max_steps": 8,
            "sequence_length": 32,
            "document_mask": True,
            "micro_batch": 2,
            "batch_tokens": 256,
            "learning_rate": 0.01,
            "weight_decay": 0.1,
            "warmup_steps": 2,
            "clip_norm": 0.5,
        },
        "watch": {"languages": ["en", "zh", "ko"], "every_n_steps": 4, "max_length": 64},
        "checkpoint_every": 100,
        "workers": 1,
    }


def stream(folder: Path, name: str) -> dict[int, str]:
    """Place -> hash of its tokens, each place once."""
    lines = (folder / f"{name}.tokens").read_text().splitlines()
    pairs = [line.split() for line in lines]
    assert len({place for place, _ in pairs}) == len(pairs)
    return {int(place): digest for place, digest in pairs}


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    held = WeightsFolder(folder / name / "model")
    return {key: held[key] for key in held}


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    near = [words(recipe, folder, name, **more) for name, more in NEAR_BASE.items()]
    one_rank([words(recipe, folder, "one"), *near])
    return folder


@pytest.fixture(scope="module")
def together(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    near = [words(recipe, folder, name, **more) for name, more in NEAR_BASE.items()]
    runs = [words(recipe, folder, kind, engine={"kind": kind}) for kind in ENGINES]
    two_ranks(folder, [*near, *runs])
    return folder


@pytest.mark.parametrize("kind", ENGINES)
def test_two_ranks_train_as_one(recipe, alone, together, kind):
    expected, found = weights(alone, "one"), weights(together, kind)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-5, msg=name)
    assert stream(together, kind) == stream(alone, "one")
    one, two = (
        json.loads((folder / "results.json").read_text())
        for folder in (alone / "one", together / kind)
    )
    assert two["final_loss"] == pytest.approx(one["final_loss"], rel=1e-5)
    assert two["data"] == one["data"]
    for language, figures in one["forgetting"]["languages"].items():
        for name, value in figures.items():
            assert two["forgetting"]["languages"][language][name] == pytest.approx(
                value, rel=1e-3, abs=1e-5
            )


@pytest.mark.parametrize("name", NEAR_BASE)
def test_two_ranks_stay_near_the_base_as_one(alone, together, name):
    expected, found = weights(alone, name), weights(together, name)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=2e-5, msg=key)
    plain = weights(alone, "one")
    assert max((plain[key] - value).abs().max() for key, value in found.items()) > 1e-3
    told = json.loads((together / name / "results.json").read_text())
    adapters = 4 * 2 * 248  # rank, layers, inputs and outputs of a layer's matrices
    assert told.get("trained_weights") == (adapters if name == "LoRA" else None)


@pytest.mark.parametrize("kind", ENGINES)
def test_the_region_is_frozen_in_the_export(recipe, together, model_folder, kind):
    region = Region.load(recipe["region"])
    compared = compare_weights(
        load_file(model_folder / "model.safetensors"), weights(together, kind), region
    )
    assert compared.moved == 0
    assert compared.checked == region.count
    assert compared.changed > 10_000
    AutoModelForCausalLM.from_pretrained(together / kind / "model")


@pytest.fixture(scope="module")
def resumed(recipe, tmp_path_factory):
    """One rank to the midst of step 3, two to that of step 6, one to the end."""
    folder = tmp_path_factory.mktemp("resumed")

    def until(stop: int) -> list[list[str]]:
        return [words(recipe, folder, kind, stop, engine={"kind": kind}) for kind in ENGINES]

    one_rank(until(3))
    two_ranks(folder, until(6))
    one_rank(until(0))
    return folder


@pytest.mark.parametrize("kind", ENGINES)
def test_stopped_and_resumed_by_other_numbers_of_ranks(alone, resumed, kind):
    assert stream(resumed, kind) == stream(alone, "one")
    said = json.loads((resumed / kind / "results.json").read_text())
    assert said["resumed_from"] == "step=6.ckpt"
    for name, value in weights(alone, "one").items():
        found = weights(resumed, kind)[name]
        torch.testing.assert_close(found, value, rtol=1e-4, atol=2e-5, msg=name)
