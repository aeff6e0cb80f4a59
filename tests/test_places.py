"""Folders that can be no model's are refused before a library reads them."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from verbs import freezetrain as run
from verbs import results

import freezetrain
from freezetrain.errors import UserError
from freezetrain.models import load_tokenizer, meta_model
from freezetrain.places import require_data_set, require_model
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Region


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_name_like_one_that_is_there(folder):
    with pytest.raises(UserError, match=r"no such folder \(did you mean '.*/model'\?\)"):
        require_model(ModelSource(str(folder) + "s"))
    with pytest.raises(UserError, match=r"no such folder \(did you mean '.*/model'\?\)"):
        require_data_set(str(folder) + "s")


def test_a_folder_of_an_adapter_alone(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "meta/llama"}')
    with pytest.raises(UserError, match=r"an adapter of the model 'meta/llama'.*merge_and_unload"):
        require_model(ModelSource(str(folder)))


@pytest.mark.parametrize("kept", [[], ["config.json"], ["config.json", "model.safetensors"]])
def test_a_folder_of_gguf_alone(folder, kept):
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    (folder / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    if "model.safetensors" in kept:
        require_model(ModelSource(str(folder)))
        return
    with pytest.raises(UserError, match=r"as GGUF alone \(model-Q4_K_M.gguf\).*gguf_file='model"):
        require_model(ModelSource(str(folder)))


def test_a_folder_without_a_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match=r"model holds no tokenizer; copy tokenizer\.json and"):
        load_tokenizer(ModelSource(str(folder)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ([1], "expected a mapping, got list"),
        ({"num_hidden_layers": 10**9}, "expected at most 2000, as in any model, for num_hidden"),
        ({"text_config": {"num_experts": 10**9}}, "for text_config.num_experts"),
        ({"hidden_size": -16}, "expected 1 or more, for hidden_size"),
    ],
)
def test_a_configuration_that_can_be_no_models(folder, content, complaint):
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=complaint):
        require_model(ModelSource(str(folder)))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bos_token": 5}, "cannot read the tokenizer .*: TypeError: .*bos_token"),
        ({"model_max_length": "x"}, "cannot read the tokenizer"),
    ],
)
def test_settings_of_a_tokenizer_that_lie(folder, changes, complaint):
    change(folder / "tokenizer_config.json", **changes)
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(ModelSource(str(folder)))


def test_a_tokenizer_at_which_its_library_panics(folder, capfd):
    path = folder / "tokenizer.json"
    piece = {"SpecialToken": {"id": "<q>", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [piece], "pair": [], "special_tokens": {}}
    change(path, post_processor=template)
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        load_tokenizer(ModelSource(str(folder)))
    assert capfd.readouterr().err == ""


def test_tokens_of_one_number(folder):
    path = folder / "tokenizer.json"
    model = json.loads(path.read_text())["model"]
    change(path, model=model | {"vocab": dict.fromkeys(model["vocab"], 1)})
    with pytest.raises(UserError, match="two of its tokens have the same number"):
        load_tokenizer(ModelSource(str(folder)))


def test_the_base_that_comes_along_is_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("info", "built-in", "--out", tmp_path / "info") == 0
    stored = load_file(Path(freezetrain.__file__).parent / "base" / "model.safetensors")
    weights = sum(tensor.numel() for tensor in stored.values())
    assert results(tmp_path / "info")["parameters"] == weights
    capsys.readouterr()
    region = tmp_path / "region.safetensors"
    Region.random(meta_model(ModelSource("built-in")), 0.01, seed=0).save(region)
    command = ["verify", "built-in", "built-in", region, "--out", tmp_path / "verify"]
    assert run(*command) == 0
    assert load_tokenizer(ModelSource("built-in")).is_fast


def test_a_folder_called_as_the_base_that_comes_along_has_a_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    folder.rename("built-in")
    sizes = {
        path: meta_model(ModelSource(path)).num_parameters() for path in ("./built-in", "built-in")
    }
    assert len(set(sizes.values())) == 2


def test_the_base_that_comes_along_is_a_near_miss(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such folder \(did you mean 'built-in'\?\)"):
        require_model(ModelSource("./builtin"))
