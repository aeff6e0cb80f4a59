"""What the files of a model hold decides, whatever config.json says: types, quantization, ties."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from freezetrain import models
from freezetrain.errors import UserError
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.models import describe, load_model, meta_model, stored_dtype, stored_dtypes
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import fingerprint
from freezetrain.stored_model import fingerprint_of_files

UP = "model.layers.0.mlp.up_proj.weight"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(tmp_path, make_model) -> Path:
    make_model().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def put(folder: Path, state: dict[str, Tensor]) -> None:
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def as_pickle(folder: Path) -> None:
    torch.save(weights(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def source(folder: Path, **more) -> ModelSource:
    return ModelSource(str(folder), **{"dtype": "stored", **more})


# Quantized and packed


def fp8(state: dict[str, Tensor]) -> None:
    state[UP] = state[UP].to(torch.float8_e4m3fn)


def fp8_with_scale(state: dict[str, Tensor]) -> None:
    fp8(state)
    state[f"{UP}_scale_inv"] = torch.ones(1, 1)


def scale_beside(state: dict[str, Tensor]) -> None:
    state[f"{UP}_scale"] = torch.ones(24, 1)


def packed(state: dict[str, Tensor]) -> None:  # as MLX and bitsandbytes do
    state[UP] = torch.zeros(24, 2, dtype=torch.int32)
    state[UP.replace("weight", "scales")] = torch.ones(24, 1)


def gptq(state: dict[str, Tensor]) -> None:
    del state[UP]
    state[UP.replace("weight", "qweight")] = torch.zeros(2, 24, dtype=torch.int32)
    state[UP.replace("weight", "scales")] = torch.ones(1, 24, dtype=torch.float16)


def mxfp4(state: dict[str, Tensor]) -> None:
    del state[UP]
    state[UP.replace("weight", "weight_blocks")] = torch.zeros(24, 1, 8, dtype=torch.uint8)


def adapter(state: dict[str, Tensor]) -> None:
    state[UP.replace("weight", "lora_A.default.weight")] = torch.ones(2, 16)


def bias(state: dict[str, Tensor]) -> None:
    state[UP.replace("weight", "bias")] = torch.ones(24)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (fp8, r"stored quantized .*'model.layers.0.mlp.up_proj.weight' is F8_E4M3"),
        (fp8_with_scale, "stored quantized"),
        (scale_beside, "beside the weights of .*up_proj.weight_scale|up_proj.*beside"),
        (packed, "stored quantized .*is I32"),
        (gptq, "stored quantized .*qweight' is I32"),
        (mxfp4, "stored quantized .*weight_blocks' is U8"),
        (adapter, "beside the weights of 'model.layers.0.mlp.up_proj'"),
        (bias, "beside the weights of 'model.layers.0.mlp.up_proj'"),
    ],
)
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_what_is_not_plain_floating_point_is_refused(folder, change, said, pickled):
    state = weights(folder)
    change(state)
    put(folder, state)
    if pickled:
        as_pickle(folder)
    for load in (meta_model, load_model):
        with pytest.raises(UserError, match=said):
            load(source(folder))


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4 bits"),
    ],
)
def test_a_configuration_that_says_so_is_refused_also_without_weights(folder, settings, method):
    configure(folder, **settings)
    (folder / "model.safetensors").unlink()
    for use in (meta_model, stored_dtype, lambda s: load_model(s, random_weights=True)):
        with pytest.raises(UserError, match=rf"stored quantized \({method}\)"):
            use(source(folder))


def in_blocks(folder: Path, size: int = 8) -> None:
    """Store the layers in FP8 with a scale for each block, and dequantized in a folder beside."""
    state, plain = weights(folder), weights(folder)
    for name in [name for name in state if ".layers." in name and "norm" not in name]:
        rows, columns = state[name].shape
        blocks = state[name].view(rows // size, size, columns // size, size)
        scales = (blocks.abs().amax((1, 3)) / 448).bfloat16().float()
        state[name] = (
            (blocks / scales[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn)
        )
        state[f"{name}_scale_inv"] = scales
        held = state[name].float().view(blocks.shape) * scales[:, None, :, None]
        plain[name] = held.view(rows, columns).bfloat16().float()  # as transformers rounds it
    shutil.copytree(folder, folder.parent / "plain")
    put(folder.parent / "plain", plain)
    put(folder, {n: t.bfloat16() if n in (HEAD, EMBEDDING) else t for n, t in state.items()})
    config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [size, size]}
    configure(folder, dtype="bfloat16", quantization_config=config)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_model_may_be_evaluated_where_transformers_can(folder, dtype, caplog):
    in_blocks(folder)
    ids = torch.arange(20)[None]
    loaded = load_model(source(folder, dtype=dtype), quantized=True)
    expected = load_model(source(folder.parent / "plain", dtype=dtype))
    for name, tensor in expected.named_parameters():
        if ".layers." in name:
            torch.testing.assert_close(loaded.get_parameter(name), tensor, rtol=0.01, atol=1e-6)
    close = {"rtol": 0.05, "atol": 0.02}
    torch.testing.assert_close(loaded(ids).logits, expected(ids).logits, **close)
    assert "are stored quantized (fp8), as it is evaluated" in caplog.text
    with pytest.raises(UserError, match=r"stored quantized \(fp8\)"):
        load_model(source(folder, dtype=dtype))


# Types


@pytest.mark.parametrize("said", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_the_type_is_that_of_the_files(folder, said, held, pickled):
    state = {name: tensor.to(held) for name, tensor in weights(folder).items()}
    put(folder, state)
    configure(folder, dtype=said)
    if pickled:
        as_pickle(folder)
    assert stored_dtype(source(folder)) == held
    assert meta_model(source(folder)).dtype == held
    loaded = load_model(source(folder))
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == held
        assert torch.equal(tensor, state[name])


def test_files_of_several_types_are_loaded_without_a_loss(folder):
    state = weights(folder)
    for name in state:
        if "norm" not in name:
            state[name] = state[name].bfloat16()
    put(folder, state)
    configure(folder, dtype="bfloat16")
    types = stored_dtypes(source(folder))
    assert types[UP] == torch.bfloat16
    assert types["model.norm.weight"] == torch.float32
    for name, tensor in load_model(source(folder)).state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float())


def test_tables_do_not_widen_the_type(folder):
    """Older LLaMAs hold frequencies in float32 beside weights in 16 bits."""
    state = {name: tensor.bfloat16() for name, tensor in weights(folder).items()}
    put(folder, {**state, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    assert stored_dtype(source(folder)) == torch.bfloat16
    assert set(stored_dtypes(source(folder)).values()) == {torch.bfloat16}


# Ties


def untied_though_it_says_tied(folder: Path) -> dict[str, Tensor]:
    configure(folder, tie_word_embeddings=True)
    state = weights(folder)
    assert not torch.equal(state[HEAD], state[EMBEDDING])
    return state


def test_head_and_embedding_that_differ_are_two(folder, caplog):
    state = untied_though_it_says_tied(folder)
    with caplog.at_level(logging.WARNING):
        shape, loaded = meta_model(source(folder)), load_model(source(folder))
    assert caplog.text.count("its files hold two that differ") == 1
    for model in (shape, loaded):
        assert model.get_parameter(HEAD) is not model.get_parameter(EMBEDDING)
        assert model.config.tie_word_embeddings is False
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name])
    # The files of a model without a head, to which one was added, lack the name of the part.
    put(folder, {name.removeprefix("model."): tensor for name, tensor in state.items()})
    assert torch.equal(load_model(source(folder)).get_parameter(HEAD), state[HEAD])
    put(folder, state)
    configure(folder, tie_word_embeddings=False)
    assert fingerprint(loaded) == fingerprint(load_model(source(folder)))


@pytest.mark.parametrize("case", ["one file", "shards", "pickle", "tied", "no head", "bfloat16"])
def test_files_tell_the_fingerprint_that_the_loaded_model_has(folder, make_model, case):
    if case == "shards":
        make_model().save_pretrained(folder, max_shard_size="20KB")
        (folder / "model.safetensors").unlink()
    elif case == "pickle":
        as_pickle(folder)
    elif case == "tied":
        make_model(tie_word_embeddings=True).save_pretrained(folder)
    elif case == "no head":
        make_model(tie_word_embeddings=True).model.save_pretrained(folder)
        configure(folder, architectures=["LlamaForCausalLM"])
    elif case == "bfloat16":
        make_model().bfloat16().save_pretrained(folder)
    here = source(folder)
    expected = fingerprint(load_model(here))
    assert fingerprint_of_files(meta_model(here), describe(here).files) == expected
    if case != "pickle":
        file = next(folder.glob("*.safetensors"))
        state = load_file(file)
        name = next(iter(sorted(state)))
        state[name].view(-1)[0] += 1
        save_file(state, file, {"format": "pt"})
        assert fingerprint_of_files(meta_model(here), describe(here).files) != expected


def test_equal_head_and_embedding_are_one(folder, caplog):
    configure(folder, tie_word_embeddings=True)
    state = weights(folder)
    put(folder, {**state, HEAD: state[EMBEDDING].clone()})
    for model in (meta_model(source(folder)), load_model(source(folder))):
        assert model.config.tie_word_embeddings is True
    model = load_model(source(folder))
    assert model.get_parameter(HEAD) is model.get_parameter(EMBEDDING)
    assert not caplog.text


def test_a_head_that_is_missing_is_refused_with_the_way_out(folder):
    state = weights(folder)
    del state[HEAD]
    put(folder, state)
    for load in (meta_model, load_model):
        with pytest.raises(UserError, match=r"lack 1 .*'lm_head\.weight'.*tie_word_embeddings: tr"):
            load(source(folder))
    configure(folder, tie_word_embeddings=True)
    assert load_model(source(folder)).get_output_embeddings().weight.shape == (400, 16)


# Names and shards


def test_an_index_is_believed_only_where_the_files_agree(folder, make_model):
    make_model().save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink()
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = index["weight_map"]
    whole = load_model(source(folder)).state_dict()
    # In another shard than it says: transformers reads all shards, and so do all engines.
    path.write_text(json.dumps({**index, "weight_map": {**names, UP: names[HEAD]}}))
    assert names[UP] != names[HEAD]
    assert torch.equal(WeightsFolder(folder)[UP], whole[UP])
    path.write_text(json.dumps({**index, "weight_map": {**names, "more": names[HEAD]}}))
    with pytest.raises(UserError, match=r"says that .* holds 'more', and no shard does"):
        meta_model(source(folder))
    path.write_text(json.dumps(index))
    shard = folder / names[HEAD]
    save_file({**load_file(shard), UP: whole[UP]}, shard, {"format": "pt"})
    with pytest.raises(UserError, match=f"both hold '{UP}'"):
        load_model(source(folder))


def test_tensors_of_another_part_are_told_of_and_left_out(folder, caplog):
    put(folder, {**weights(folder), "model.mtp.0.weight": torch.ones(3, 3)})
    load_model(source(folder))
    assert "'model.mtp.0.weight', are not of LlamaForCausalLM and are left out" in caplog.text


def test_computed_tables_are_no_matter(folder, caplog):
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    put(folder, {**weights(folder), **table})
    load_model(source(folder))
    assert not caplog.text


def test_a_snapshot_of_the_hub_is_read_like_a_folder(folder, tmp_path, monkeypatch):
    """As huggingface_hub lays it out: links in a folder named by the commit."""
    state = untied_though_it_says_tied(folder)
    put(folder, {name: tensor.bfloat16() for name, tensor in state.items()})
    cache, commit = tmp_path / "hub" / "models--some--one", "c" * 40
    snapshot = cache / "snapshots" / commit
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = cache / "blobs" / str(number)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    one = ModelSource("some/one", dtype="stored")
    assert stored_dtype(one) == torch.bfloat16
    assert meta_model(one).config.tie_word_embeddings is False
    assert load_model(one).dtype == torch.bfloat16
    assert models.local_folder(one) == snapshot
