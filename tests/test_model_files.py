"""Weights and configurations that do not fit, or cannot be read, are refused in a sentence."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from freezetrain.errors import UserError
from freezetrain.models import load_model, meta_model
from freezetrain.recipe.sources import ModelSource


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def refused(folder) -> str:
    with pytest.raises(UserError) as raised:
        load_model(ModelSource(str(folder)))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden_size": "abc"}, "Field 'hidden_size' expected int, got str (value: 'abc')"),
        ({"dtype": "float99"}, "has no attribute 'float99'"),
        ({"hidden_act": "nosuch"}, "hidden_act is 'nosuch', which transformers does not know"),
        ({"rope_parameters": {"rope_type": "nosuch"}}, "rope_parameters.rope_type is 'nosuch'"),
        ({"num_key_value_heads": 3, "num_attention_heads": 4}, "cannot run: The size of tensor a"),
        ({"vocab_size": 500}, "has the shape [400, 16] in the files, and [500, 16] by config.json"),
        ({"num_hidden_layers": 1}, "the files hold model.layers.1 and config.json describes fewer"),
        ({"intermediate_size": 10**9}, "describes a model of 96,000,"),
        ({"model_type": "x", "auto_map": {"AutoConfig": "evil.X"}}, "give model.trust_remote_code"),
    ],
)
def test_a_configuration_that_lies(folder, changes, complaint):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folder / "evil.py").write_text("raise SystemExit('this must not run')")
    assert complaint in refused(folder)


def test_random_weights_need_no_weights_that_fit(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 10**6}))
    assert meta_model(ModelSource(str(folder)), random_weights=True).vocab_size == 10**6


class Harmless:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (Harmless(), "it is a pickle that holds more than tensors, which is not run"),
        ({"model.norm.weight": Harmless()}, "it is a pickle that holds more than tensors"),
        ([1, 2], "expected a dict of tensors"),
        ({"model.norm.weight": torch.zeros(1).expand(10**11)}, "lm_head.weight"),
    ],
)
@pytest.mark.parametrize("save", [torch.save, lambda content, path: pickle.dump(content, path)])
def test_a_pickle_that_is_no_plain_state_dict(folder, content, complaint, save):
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        save(content, file)
    said = refused(folder)
    assert not Path("ran").exists()
    assert complaint in said or "describes a model of" in said or "save the weights as saf" in said


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ([1], "expected a mapping, got list"),
        ({}, "expected a weight_map"),
        ({"weight_map": {"a": 5}}, "expected a weight_map"),
        ({"weight_map": {"a": "../model/x.safetensors"}}, "with 'a', is missing"),
    ],
)
def test_an_index_that_lies(folder, index, complaint):
    (folder / "model.safetensors").rename(folder / "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert complaint in refused(folder)


def test_weights_as_a_plain_pickle_are_loaded(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    found = load_model(ModelSource(str(folder))).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
