"""The benchmark of selecting: the script selects what it says, and verdicts follow from figures."""

import random

import numpy as np
import pytest
import torch

from benchmarks import selecting
from freezetrain.scoring import Scores, select

SIZES = (32, 48, 16, 2)


@pytest.fixture(scope="module")
def found():
    return selecting.measured(2, *SIZES)


def test_the_scripts_mask_holds_the_largest_as_our_region_does() -> None:
    scores = torch.randperm(1200, generator=torch.Generator().manual_seed(0)).view(30, 40).float()
    mask = selecting.script_top(scores, 0.01)
    assert np.array_equal(mask.numpy().ravel(), scores.numpy().ravel() >= 1200 - 12)
    assert torch.equal(select(Scores({"w": scores}), 0.01).masks()["w"], mask)


def test_the_scripts_random_mask_has_as_many() -> None:
    random.seed(0)
    masks = [selecting.script_random(torch.zeros(30, 40), 0.01) for _ in range(2)]
    assert [int(mask.sum()) for mask in masks] == [12, 12]
    assert not torch.equal(*masks)


def test_shapes_are_those_of_llama() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=8,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    parameters = LlamaForCausalLM(config).named_parameters()
    blocks = {n: tuple(p.shape) for n, p in parameters if "layers" in n and p.ndim == 2}
    assert selecting.shapes(*SIZES) == blocks


def test_the_file_holds_the_made_up_scores(tmp_path) -> None:
    made = selecting.Made(selecting.shapes(*SIZES))
    selecting.write(tmp_path / "scores.safetensors", made)
    selecting.evict(tmp_path / "scores.safetensors")
    loaded = Scores.load(tmp_path / "scores.safetensors")
    assert list(loaded) == list(made)
    assert all(torch.equal(loaded[name], made[name]) for name in made)
    assert all(loaded[name].min() >= 0 for name in made)


def test_tiny_run(found) -> None:
    per_block = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48
    assert found["scores"] == 2 * per_block
    assert found["bytes"] > 4 * found["scores"]
    assert found["block"] == {"scores": per_block, "matrices": 7}
    assert found["entries"] == sum(int(0.01 * n + 0.5) for n in (1024, 1024, 512, 512, *[1536] * 3))
    assert found["ratios"]["disk"]["read"]["median"] == 1


def test_verdicts(found) -> None:
    def told(ratio: float, faster: float) -> list[bool | None]:
        figures = {
            "disk": {"select": dict.fromkeys(("median", "low", "high"), ratio)},
            "memory": {"select": dict.fromkeys(("median", "low", "high"), ratio)},
        }
        times = {
            way: dict.fromkeys(("median", "low", "high"), faster) for way in found["times_faster"]
        }
        lines = selecting.rows({**found, "ratios": figures, "times_faster": times})
        assert all(line.note for line in lines if line.met is False and "disk" in line.what)
        return [line.met for line in lines if line.goal]

    assert told(1.09, 3.0) == [True, True, True]
    assert told(1.11, 0.9) == [False, False, False]


def test_what_is_beyond_reading_is_told_in_passes() -> None:
    seconds = {"memory": {"read": [1.0, 2.0], "select": [4.0, 8.0]}, "disk": {}}
    said = selecting._beyond_reading({"seconds": seconds}, "memory")
    assert said.startswith("4.50 s more, 3.0 times a pass")
