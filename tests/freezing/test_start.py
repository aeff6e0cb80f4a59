"""What frozen entries start from: a value given by the user, or the base as it is stored."""

from pathlib import Path

import pytest
import torch
from frozen_reference import (
    Constants,
    TinyLM,
    adamw,
    assert_same_training,
    flat_layout,
    mixed_region,
    steps_of_batches,
    train,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.freezing import freeze
from freezetrain.freezing.handle import set_all as clamp
from freezetrain.freezing.handle import take_stored
from freezetrain.freezing.layout import prove
from freezetrain.regions import Base, Region, fingerprint


def filled(model: nn.Module, region: Region, value: float) -> nn.Module:
    """With the region set by plain indexing."""
    with torch.no_grad():
        for name, mask in region.masks().items():
            model.get_parameter(name)[mask] = value
    return model


@pytest.mark.parametrize("value", [0.0, 0.7, -3])
def test_clamped_entries_are_the_constants_of_the_reference(value: float) -> None:
    model = TinyLM()
    region = mixed_region(model)
    reference = Constants(filled(TinyLM(), region, value), region)
    norms = train(
        reference, reference.parameters(), adamw(reference.parameters()), steps_of_batches()
    )
    optimizer = adamw(model.parameters())
    handle = freeze(model, optimizer, region, clamp=value, audit_every=1)
    found = train(model, list(model.parameters()), optimizer, steps_of_batches())
    assert handle.verify() == handle.count
    assert_same_training(model, reference)
    torch.testing.assert_close(found, norms, rtol=1e-9, atol=0)


def test_clamping_sets_the_entries_alone_and_changes_the_digest() -> None:
    region = mixed_region(TinyLM())
    digests = set()
    for value in (None, 0.0, -0.0, 0.5):
        model = TinyLM()
        digests.add(freeze(model, adamw(model.parameters()), region, clamp=value).digest)
        expected = TinyLM() if value is None else filled(TinyLM(), region, value)
        for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        plain = freeze(expected, adamw(expected.parameters()), region)
        assert plain.digest in digests
    assert len(digests) == 4


def test_the_base_is_looked_at_before_it_is_clamped() -> None:
    model, other = TinyLM(), TinyLM(seed=1)
    region = Region.tensors(model, ["up.weight"], base=Base("tiny", None, fingerprint(model)))
    before = other.up.weight.detach().clone()
    with pytest.raises(UserError, match="another model"):
        freeze(other, adamw(other.parameters()), region, clamp=0.0)
    assert torch.equal(other.up.weight, before)
    freeze(model, adamw(model.parameters()), region, clamp=0.0)
    assert not model.up.weight.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_only_finite_numbers_clamp(value: float) -> None:
    model = TinyLM()
    with pytest.raises(UserError, match=f"finite number in torch.float64, got {value}"):
        freeze(model, adamw(model.parameters()), mixed_region(model), clamp=value)
    for mine, theirs in zip(model.parameters(), TinyLM().parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_clamp_must_fit_the_dtype() -> None:
    model = TinyLM().half()
    with pytest.raises(UserError, match=r"finite number in torch.float16, got 1000000\.0"):
        freeze(model, adamw(model.parameters()), mixed_region(model), clamp=1e6)


def test_clamp_sets_masters_and_weights() -> None:
    model = TinyLM().bfloat16()
    region = mixed_region(model)
    layout = flat_layout(model, region)
    owner = layout.masters[0].owner
    before = owner.detach().clone()
    clamp(layout, 0.1)
    copies = [shard.read() for shard in layout.copies]
    assert all(values.eq(torch.tensor(0.1).bfloat16()).all() for values in copies)
    assert all(shard.read().eq(torch.tensor(0.1)).all() for shard in layout.masters)
    assert owner.ne(before).sum() == sum(len(values) for values in copies)


def stored_as(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("world", [1, 2])
def test_masters_take_the_stored_values_at_frozen_entries_alone(world: int) -> None:
    base, model = TinyLM().float(), TinyLM().bfloat16()
    region, stored = mixed_region(base), stored_as(base)
    weights = stored_as(model)
    for rank in range(world):
        layout = flat_layout(model, region, rank, world)
        rounded = [shard.of(shard.owner).detach().clone() for shard in layout.masters]
        take_stored(layout, stored)
        for shard, before in zip(layout.masters, rounded, strict=True):
            flat = stored[shard.name].flatten()[shard.first : shard.first + len(before)]
            mask = shard.entries.mask()
            assert torch.equal(shard.of(shard.owner), torch.where(mask, flat, before))
        if world == 1:
            prove(layout, region.resolve(model), exact=False)
    for name, parameter in model.named_parameters():  # what the forward pass uses stays
        assert torch.equal(parameter, weights[name])
    assert any(not torch.equal(weights[name].float(), stored[name]) for name in region)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_on_one_device_the_base_is_checked_and_rounds_to_the_weights(dtype: torch.dtype) -> None:
    base, model = TinyLM(), TinyLM().to(dtype)
    region, before = mixed_region(base), stored_as(model)
    optimizer = adamw(model.parameters())
    handle = freeze(model, optimizer, region, base=stored_as(base), audit_every=1)
    for _ in range(2):
        model.norm.weight.grad = torch.ones_like(model.norm.weight)
        model.up.bias.grad = torch.ones_like(model.up.bias)
        optimizer.step()
    assert handle.verify() == handle.count
    for name, mask in region.masks().items():
        assert torch.equal(model.get_parameter(name)[mask], before[name][mask])
    assert not torch.equal(model.up.bias, before["up.bias"])


def test_a_base_that_differs_at_trainable_entries_alone_is_no_matter() -> None:
    model = TinyLM().bfloat16()
    region = Region.rows(model, {"up.weight": [1]})
    other = {"up.weight": torch.full_like(model.up.weight, 9.0)}
    other["up.weight"][1] = model.up.weight[1].detach()
    freeze(model, adamw(model.parameters()), region, base=other)


def test_wrong_bases_are_refused() -> None:
    model = TinyLM().bfloat16()
    region, right = (
        Region.rows(model, {"up.weight": [1, 4], "down.weight": [0]}),
        stored_as(TinyLM()),
    )
    optimizer = adamw(model.parameters())
    nearly = {**right, "up.weight": right["up.weight"].clone()}
    nearly["up.weight"][4, 5] *= 1.01
    misnamed = {name.replace("down.weight", "down.weigth"): v for name, v in right.items()}
    for wrong, complaint in [
        (stored_as(TinyLM(seed=1)), r"the weights of up\.weight at its frozen .* not those of the"),
        (nearly, r"the weights of up\.weight at its frozen entries"),
        ({**right, "down.weight": torch.ones(3, 3)}, r"shape \[3, 3\] in the base and \[6, 10\]"),
        (misnamed, r"the base holds no 'down\.weight' \(did you mean 'down\.weigth'"),
        ({}, r"the base holds no 'up\.weight'"),
    ]:
        with pytest.raises(UserError, match=complaint):
            freeze(model, optimizer, region, base=wrong)
    freeze(model, optimizer, region, base=right)


def test_names_are_those_of_the_region_under_wrappers() -> None:
    model = nn.ModuleDict({"module": TinyLM().bfloat16()})
    region = Region.from_masks({"head.weight": torch.arange(78).view(13, 6) % 3 == 0})
    stored = {"head.weight": TinyLM().head.weight.detach()}
    (item,) = region.resolve(model)
    assert item.name == "module.embedding.weight"  # tied
    freeze(model, adamw(model.parameters()), region, base=stored)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_folder_of_weights(kind: type, tmp_path: Path) -> None:
    model = TinyLM().bfloat16()
    region = mixed_region(model)
    save_file(stored_as(TinyLM().float()), tmp_path / "model.safetensors")
    optimizer = adamw(model.parameters())
    freeze(model, optimizer, region, base=kind(tmp_path)).remove()
    save_file(stored_as(TinyLM(seed=1).float()), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="not those of the base"):
        freeze(model, optimizer, region, base=kind(tmp_path))
    with pytest.raises(UserError, match="there is none at"):
        freeze(model, optimizer, region, base=kind(tmp_path / "elsewhere"))


def test_a_folder_with_tied_weights(make_model, tmp_path: Path) -> None:
    base = make_model(tie_word_embeddings=True)
    base.save_pretrained(tmp_path)
    region = Region.rows(base, {"lm_head.weight": [3, 5], "model.embed_tokens.weight": [7]})
    for names in (["lm_head.weight"], ["model.embed_tokens.weight"], list(region)):
        part = Region({name: region[name] for name in names})
        model = make_model(tie_word_embeddings=True).bfloat16()
        handle = freeze(model, adamw(model.parameters()), part, base=tmp_path)
        assert handle.count == 16 * sum(len(part[name].data) for name in names)
        other = make_model(1, tie_word_embeddings=True).bfloat16()
        with pytest.raises(UserError, match="not those of the base"):
            freeze(other, adamw(other.parameters()), part, base=tmp_path)
