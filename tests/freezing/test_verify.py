"""Comparing model folders as Hugging Face writes them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from freezetrain import freeze
from freezetrain.analysis.verify import compare, comparison_display
from freezetrain.errors import UserError
from freezetrain.freezing import Offender, compare_checkpoints, compare_weights
from freezetrain.regions import Region

SIZES = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
QUERY = "model.layers.1.self_attn.q_proj.weight"  # [8, 8]
DOWN = "model.layers.0.mlp.down_proj.weight"  # [8, 12]


def llama(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **changes))


def save(model: torch.nn.Module, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@torch.no_grad()
def train_outside(model: torch.nn.Module, region: Region) -> int:
    """Change every entry outside the region; return how many."""
    changed = 0
    frozen = {found.name: found.entries.mask() for found in region.resolve(model)}
    for name, parameter in model.named_parameters():
        mask = frozen.get(name, torch.zeros_like(parameter, dtype=torch.bool))
        parameter.copy_(torch.where(mask, parameter, parameter + 1))
        changed += int((~mask).sum())
    return changed


@torch.no_grad()
def flip_lowest_bit(parameter: torch.Tensor, index: int) -> None:
    parameter.view(torch.int32).view(-1)[index] ^= 1


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("shards", ["5GB", "2KB"], ids=["one file", "shards"])
def test_counts_what_moved_and_what_trained(tmp_path: Path, tied: bool, shards: str) -> None:
    model = llama(tie_word_embeddings=tied)
    region = Region.random(model, 0.1, seed=0) | Region.tensors(model, ["*norm*"])
    base = save(model, tmp_path / "base", max_shard_size=shards)
    assert (base / "model.safetensors").exists() == (shards == "5GB")

    same = compare_checkpoints(base, base, region)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (same.checked, same.moved, same.offenders) == (region.count, 0, [])
    assert (same.trainable, same.changed) == (total - region.count, 0)

    changed = train_outside(model, region)
    adapted = save(model, tmp_path / "adapted")
    trained = compare_checkpoints(base, adapted, region)
    assert (trained.checked, trained.moved, trained.changed) == (region.count, 0, changed)

    inside = region.indices(QUERY)[[0, -1]].tolist()
    query = model.get_parameter(QUERY)
    before = query.detach().flatten()[inside].tolist()
    for index in inside:
        flip_lowest_bit(query, index)
    broken = compare_checkpoints(base, save(model, tmp_path / "broken"), region)
    after = query.detach().flatten()[inside].tolist()
    assert before != after
    assert broken.moved == 2
    assert broken.changed == changed
    assert broken.offenders == [
        Offender(QUERY, *values) for values in zip(inside, before, after, strict=True)
    ]


def test_first_offenders_are_named_in_order(tmp_path: Path) -> None:
    model = llama()
    region = Region.tensors(model, [QUERY, DOWN])
    base = save(model, tmp_path / "base")
    for index in (5, 3):
        flip_lowest_bit(model.get_parameter(DOWN), index)
        flip_lowest_bit(model.get_parameter(QUERY), index)
    adapted = save(model, tmp_path / "adapted")
    found = compare_checkpoints(base, adapted, region, first=3)
    assert found.moved == 4
    assert [(o.name, o.index) for o in found.offenders] == [(DOWN, 3), (DOWN, 5), (QUERY, 3)]


def test_signed_zero_moves_and_nan_does_not(tmp_path: Path) -> None:
    model = llama()
    region = Region.tensors(model, [QUERY])
    with torch.no_grad():
        model.get_parameter(QUERY)[0, :2] = torch.tensor([0.0, float("nan")])
    base = save(model, tmp_path / "base")
    with torch.no_grad():
        model.get_parameter(QUERY)[0, 0] = -0.0
    found = compare_checkpoints(base, save(model, tmp_path / "adapted"), region)
    assert [offender.index for offender in found.offenders] == [0]


def test_other_dtype_is_compared_by_exact_value(tmp_path: Path) -> None:
    model = llama().bfloat16()
    region = Region.random(model, 0.2, seed=0)
    base = save(model, tmp_path / "base")
    wide = save(model.float(), tmp_path / "wide")
    found = compare_checkpoints(base, wide, region)
    assert (found.moved, found.changed) == (0, 0)

    inside = int(region.indices(DOWN)[0])
    flip_lowest_bit(model.get_parameter(DOWN), inside)  # far below what bfloat16 resolves
    found = compare_checkpoints(base, save(model, tmp_path / "moved"), region)
    assert [(o.name, o.index) for o in found.offenders] == [(DOWN, inside)]
    # Stored in bfloat16 again the change is rounded away.
    rounded = save(model.bfloat16(), tmp_path / "rounded")
    assert compare_checkpoints(base, rounded, region).moved == 0
    found = compare_checkpoints(tmp_path / "moved", rounded, region)
    assert [(o.name, o.index) for o in found.offenders] == [(DOWN, inside)]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tied_head_may_be_named_either_way(tmp_path: Path, kind: str) -> None:
    if kind == "llama":
        model, embedding = llama(tie_word_embeddings=True), "model.embed_tokens.weight"
    else:
        model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2))
        embedding = "transformer.wte.weight"
    rows = torch.arange(20)[:, None].expand(20, 8)
    by_head = Region.from_masks({"lm_head.weight": rows < 3})
    by_both = by_head | Region.from_masks({embedding: rows == 5})
    base = save(model, tmp_path / "base")
    with torch.no_grad():
        model.get_input_embeddings().weight[2, 0] += 1
    adapted = save(model, tmp_path / "adapted")
    for region, count in ((by_head, 3 * 8), (by_both, 4 * 8)):
        found = compare_checkpoints(base, adapted, region)
        assert found.checked == count
        assert [(o.name, o.index) for o in found.offenders] == [(embedding, 16)]


def test_head_tied_on_one_side_only(tmp_path: Path) -> None:
    tied = llama(tie_word_embeddings=True)
    region = Region.from_masks({"lm_head.weight": torch.ones(20, 8, dtype=torch.bool)})
    base = save(tied, tmp_path / "base")
    untied = llama()
    untied.load_state_dict(tied.state_dict())
    untied.model.embed_tokens.weight.data += 1
    adapted = save(untied, tmp_path / "adapted")
    found = compare_checkpoints(base, adapted, region)
    assert (found.checked, found.moved, found.changed) == (160, 0, 160)


def test_fused_experts_are_compared_in_memory(tmp_path: Path) -> None:
    model = MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2))
    region = Region.random(model, 0.1, seed=0)
    base = save(model, tmp_path / "base")
    with pytest.raises(UserError, match=r"'model\.layers\.0\.mlp\.experts\.down_proj'"):
        compare_checkpoints(base, base, region)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    changed = train_outside(model, region)
    found = compare_weights(before, dict(model.named_parameters()), region)
    assert (found.checked, found.moved, found.changed) == (region.count, 0, changed)
    with pytest.raises(UserError, match="did you mean"):
        compare_weights(before, before, Region.from_masks({"lm_head.weigh": torch.ones(1).bool()}))


def with_tables(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As older models are stored: frequencies, masks and places beside the parameters."""
    return {
        **state,
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.1.attn.bias": torch.ones(1, 1, 8, 8),
        "model.layers.1.attn.masked_bias": torch.tensor(-1e4),
        "model.position_ids": torch.arange(8)[None],
    }


TABLES = sorted(with_tables({}))


@pytest.mark.parametrize("side", ["base", "adapted", "both"])
def test_what_is_no_parameter_is_left_out(tmp_path: Path, side: str) -> None:
    model = llama()
    region = Region.random(model, 0.1, seed=0)
    folders = [save(model, tmp_path / name) for name in ("base", "adapted")]
    total = sum(parameter.numel() for parameter in model.parameters())
    for folder in folders:
        file = folder / "model.safetensors"
        if side in (folder.name, "both"):
            save_file(with_tables(load_file(file)), file, {"format": "pt"})
    states = [load_file(folder / "model.safetensors") for folder in folders]
    for found in (
        compare_checkpoints(*folders, region),
        compare_weights(*states, region),
        compare(*folders, region),
    ):
        assert sorted(found.left_out) == TABLES
        assert (found.checked, found.moved, found.changed) == (region.count, 0, 0)
        assert found.checked + found.trainable == total
    (_, said) = comparison_display(compare(*folders, region))
    assert said.startswith("4 tensors in the files that are no parameters were not compared, first")


def test_a_frozen_tensor_is_never_left_out(tmp_path: Path) -> None:
    name = "model.layers.1.attn.bias"
    region = Region.from_masks({name: torch.ones(1, 1, 8, 8, dtype=torch.bool)})
    before = {name: torch.ones(1, 1, 8, 8)}
    with pytest.raises(UserError, match="hold no"):
        compare_weights(before, {}, region)
    assert compare_weights(before, {name: torch.zeros(1, 1, 8, 8)}, region).moved == 64


def test_parts_that_the_model_does_not_use_are_left_out(tmp_path: Path) -> None:
    model = llama()
    base, adapted = save(model, tmp_path / "base"), save(model, tmp_path / "adapted")
    file = base / "model.safetensors"
    more = {**load_file(file), "model.mtp.0.weight": torch.ones(3, 3)}
    save_file(more, file, {"format": "pt"})
    region = Region.tensors(model, [QUERY])
    found = compare(base, adapted, region)
    assert (found.moved, found.left_out) == (0, ["model.mtp.0.weight"])
    with pytest.raises(UserError, match=r"hold no 'model\.mtp"):  # which names alone cannot tell
        compare_checkpoints(base, adapted, region)


def test_files_without_the_name_of_their_part_are_compared(tmp_path: Path) -> None:
    """GPT-2's on the hub, whose masks are named like the biases beside them."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2))
    base, adapted = save(model, tmp_path / "base"), save(model, tmp_path / "adapted")
    file = base / "model.safetensors"
    state = {n.removeprefix("transformer."): t for n, t in load_file(file).items()}
    state |= {"h.0.attn.bias": torch.ones(1, 1, 9, 9), "h.0.attn.masked_bias": torch.zeros(())}
    save_file(state, file, {"format": "pt"})
    found = compare(base, adapted, Region.random(model, 0.1, seed=0))
    assert (found.moved, found.changed) == (0, 0)
    assert found.left_out == ["h.0.attn.bias", "h.0.attn.masked_bias"]


@pytest.mark.parametrize("tied", [False, True])
def test_pickled_weights_are_compared(tmp_path: Path, tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    region = Region.tensors(model, [DOWN])
    base, adapted = save(model, tmp_path / "base"), save(model, tmp_path / "adapted")
    flip_lowest_bit(model.get_parameter(DOWN), 7)
    (adapted / "model.safetensors").unlink()
    torch.save(model.state_dict(), adapted / "pytorch_model.bin")
    found = compare(base, adapted, region)
    assert [(offender.name, offender.index) for offender in found.offenders] == [(DOWN, 7)]


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    model = llama()
    base, adapted = save(model, tmp_path / "base"), save(model, tmp_path / "adapted")
    file = adapted / "model.safetensors"
    state = load_file(file)
    save_file({**state, DOWN: state[DOWN].to(torch.float8_e4m3fn)}, file, {"format": "pt"})
    region = Region.tensors(model, [QUERY])
    for check in (compare, compare_checkpoints):
        with pytest.raises(UserError, match="stored quantized"):
            check(base, adapted, region)
    with pytest.raises(UserError, match="stored quantized"):
        freeze(model, torch.optim.SGD(model.parameters(), 0.1), region, base=adapted)


def test_bad_folders_and_regions_are_one_clear_error(tmp_path: Path) -> None:
    model = llama()
    region = Region.tensors(model, [QUERY])
    base = save(model, tmp_path / "base")

    def refused(match: str, adapted: Path = base, region: Region = region) -> None:
        with pytest.raises(UserError, match=match):
            compare_checkpoints(base, adapted, region)

    refused("there is none at", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("holds neither", tmp_path / "empty")
    misspelt = Region.from_masks({QUERY.replace("q_", "Q_"): torch.ones(8, 8).bool()})
    refused(f"did you mean .*'{QUERY}'", region=misspelt)
    refused("of shape", region=Region.from_masks({QUERY: torch.ones(8, 9).bool()}))

    other = save(LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 21})), tmp_path / "other")
    refused(r"has shape \[20, 8\] in the base and \[21, 8\]", other)

    truncated = save(model, tmp_path / "truncated")
    whole = (truncated / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(whole[:-100])
    refused("truncated or not a safetensors file", truncated)

    lacks = save(model, tmp_path / "lacks")
    tensors = load_file(lacks / "model.safetensors")
    del tensors[DOWN]
    save_file(tensors, lacks / "model.safetensors", {"format": "pt"})
    refused(f"hold no '{DOWN}'", lacks)

    sharded = save(model, tmp_path / "sharded", max_shard_size="2KB")
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shard = index["weight_map"][DOWN]
    (sharded / shard).unlink()
    refused(f"the shard {shard}", sharded)


def in_sixteen_bits(model: LlamaForCausalLM, folder: Path) -> Path:
    """A copy of the model, trained outside the region, as a run in bfloat16 exports it."""
    copy = llama()
    copy.load_state_dict(model.state_dict())
    train_outside(copy, Region.tensors(copy, [DOWN]))
    return save(copy.bfloat16(), folder)


def test_rounded_values_count_as_moved_unless_they_are_asked_for(tmp_path: Path) -> None:
    model = llama()
    region = Region.tensors(model, [DOWN])
    with torch.no_grad():
        model.get_parameter(DOWN)[0, :3] = torch.tensor([0.5, -0.0, 1.0])  # exact in bfloat16
    base, adapted = save(model, tmp_path / "base"), in_sixteen_bits(model, tmp_path / "adapted")
    weights = model.get_parameter(DOWN).detach()
    inexact = int((weights.bfloat16().float() != weights).sum())
    strict = compare_checkpoints(base, adapted, region)
    assert (strict.checked, strict.moved, strict.rounded_to) == (96, inexact, "bfloat16")
    assert 0 < inexact < 96
    lenient = compare_checkpoints(base, adapted, region, rounded_to="bfloat16")
    assert (lenient.moved, lenient.rounded_to) == (0, None)
    # An fp32 export of such a run holds the rounded values in the wider type.
    wide = {name: value.float() for name, value in load_file(adapted / "model.safetensors").items()}
    assert compare_weights(load_file(base / "model.safetensors"), wide, region).moved == inexact
    half = compare_weights(
        load_file(base / "model.safetensors"), wide, region, rounded_to="float16"
    )
    assert half.moved
    other = load_file(adapted / "model.safetensors")
    other[DOWN][0, 0] = 0.75
    save_file(other, adapted / "model.safetensors", metadata={"format": "pt"})
    assert compare_checkpoints(base, adapted, region, rounded_to="bfloat16").moved == 1
    assert compare_checkpoints(base, adapted, region).rounded_to is None
    with pytest.raises(UserError, match=r"bfloat16, float16, got 'int8'"):
        compare_checkpoints(base, adapted, region, rounded_to="int8")


def test_clamped_entries_are_compared_with_the_value(tmp_path: Path) -> None:
    model = llama()
    region = Region.tensors(model, [DOWN])
    base = save(model, tmp_path / "base")
    with torch.no_grad():
        model.get_parameter(DOWN).fill_(0.0)
    adapted = save(model, tmp_path / "adapted")
    assert compare_checkpoints(base, adapted, region).moved == 96
    found = compare_checkpoints(base, adapted, region, clamp=0.0)
    assert (found.checked, found.moved) == (96, 0)
    with torch.no_grad():
        model.get_parameter(DOWN)[0, 0] = -0.0
    save(model, tmp_path / "adapted")
    (offender,) = compare_checkpoints(base, adapted, region, clamp=0.0).offenders
    assert (offender.name, offender.index, offender.base) == (DOWN, 0, 0.0)


def test_clamped_value_is_that_of_the_adapted_models_dtype() -> None:
    region = Region.from_masks({"w": torch.tensor([True, False])})
    for stored, trained in [("bfloat16", "float32"), ("float32", "bfloat16")]:
        before = {"w": torch.zeros(2, dtype=getattr(torch, stored))}
        after = {"w": torch.full((2,), 0.1, dtype=getattr(torch, trained))}
        assert compare_weights(before, after, region, clamp=0.1).moved == 0
        assert compare_weights(before, after, region, clamp=0.2).moved == 1
