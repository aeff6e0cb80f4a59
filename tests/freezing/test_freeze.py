"""The freeze against the same model with its frozen entries as constants."""

from collections.abc import Callable

import pytest
import torch
from frozen_reference import (
    MAX_NORM,
    Constants,
    TinyLM,
    adamw,
    assert_same_training,
    loss_of,
    mixed_region,
    steps_of_batches,
    train,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import freeze
from freezetrain.regions import Base, Region, fingerprint


def test_empty_region_changes_no_bit() -> None:
    plain, frozen = TinyLM(), TinyLM()
    steps = steps_of_batches()
    expected = train(plain, list(plain.parameters()), adamw(plain.parameters()), steps)
    optimizer = adamw(frozen.parameters())
    handle = freeze(frozen, optimizer, Region.random(frozen, 0.0, seed=0))
    norms = train(frozen, list(frozen.parameters()), optimizer, steps)
    assert norms == expected
    assert handle.verify() == 0
    for mine, theirs in zip(frozen.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_optimizer_state_is_zero_at_frozen_entries() -> None:
    model = TinyLM()
    region, optimizer = mixed_region(model), adamw(model.parameters())
    freeze(model, optimizer, region)
    train(model, list(model.parameters()), optimizer, steps_of_batches())
    for frozen in region.resolve(model):
        for moment in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[frozen.parameter][moment]
            assert not state[frozen.entries.mask()].any()
            assert frozen.entries.count == state.numel() or state.any()


def test_tied_weights_are_frozen_under_either_name() -> None:
    region = Region.from_masks({"head.weight": torch.arange(78).view(13, 6) % 3 == 0})
    by_other_name = Region.from_masks({"embedding.weight": region.masks()["head.weight"]})
    models = [TinyLM(), TinyLM()]
    for model, named in zip(models, (region, by_other_name), strict=True):
        optimizer = adamw(model.parameters())
        with freeze(model, optimizer, named):
            train(model, list(model.parameters()), optimizer, steps_of_batches())
    reference = Constants(TinyLM(), by_other_name)
    train(reference, reference.parameters(), adamw(reference.parameters()), steps_of_batches())
    for model in models:
        assert_same_training(model, reference)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant: bool) -> None:
    def forward_of(model: TinyLM) -> Callable[[Tensor], Tensor]:
        def forward(input_ids: Tensor) -> Tensor:
            hidden = model.embedding(input_ids)
            block = nn.Sequential(model.up, nn.GELU(), model.down)
            return model.head(
                model.norm(hidden + checkpoint(block, hidden, use_reentrant=reentrant))
            )

        return forward

    model, region = TinyLM(), mixed_region(TinyLM())
    reference = Constants(TinyLM(), region)
    train(reference, reference.parameters(), adamw(reference.parameters()), steps_of_batches())
    optimizer = adamw(model.parameters())
    with freeze(model, optimizer, region):
        train(forward_of(model), list(model.parameters()), optimizer, steps_of_batches())
    assert_same_training(model, reference)


def test_compiled_model() -> None:
    model = TinyLM()
    region, compiled = mixed_region(model), torch.compile(model, backend="aot_eager")
    reference = Constants(TinyLM(), region)
    train(reference, reference.parameters(), adamw(reference.parameters()), steps_of_batches())
    optimizer = adamw(model.parameters())
    with freeze(compiled, optimizer, region):
        train(compiled, list(model.parameters()), optimizer, steps_of_batches())
    assert_same_training(model, reference)


def test_gradient_scaler() -> None:
    model = TinyLM()
    region, optimizer = mixed_region(model), adamw(model.parameters())
    reference = Constants(TinyLM(), region)
    train(reference, reference.parameters(), adamw(reference.parameters()), steps_of_batches())
    scaler = torch.amp.GradScaler("cpu")
    with freeze(model, optimizer, region):
        for batches in steps_of_batches():
            optimizer.zero_grad()
            for input_ids in batches:
                scaler.scale(loss_of(model(input_ids), input_ids) / len(batches)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
            scaler.step(optimizer)
            scaler.update()
    assert_same_training(model, reference)


def test_two_freezes_of_one_optimizer_add_up() -> None:
    model = TinyLM()
    one, two = (Region.random(model, 0.3, seed=seed) for seed in (0, 1))
    reference = Constants(TinyLM(), one | two)
    train(reference, reference.parameters(), adamw(reference.parameters()), steps_of_batches())
    optimizer = adamw(model.parameters())
    with freeze(model, optimizer, one), freeze(model, optimizer, two):
        train(model, list(model.parameters()), optimizer, steps_of_batches())
    assert_same_training(model, reference)


def test_removed_region_trains_again() -> None:
    model = TinyLM()
    region, optimizer = mixed_region(model), adamw(model.parameters())
    handle = freeze(model, optimizer, region)
    handle.remove()
    handle.remove()
    plain = TinyLM()
    train(plain, list(plain.parameters()), adamw(plain.parameters()), steps_of_batches())
    train(model, list(model.parameters()), optimizer, steps_of_batches())
    for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(UserError, match=r"the freeze was removed: verify before remove\(\)"):
        handle.verify()


def test_verify_names_a_parameter_that_changed_its_dtype() -> None:
    model = TinyLM()
    region = Region.from_masks({"up.weight": torch.arange(60).view(10, 6) == 7})
    handle = freeze(model, adamw(model.parameters()), region)
    assert handle.verify() == 1
    model.bfloat16()
    with pytest.raises(CheckError, match=r"up\.weight changed since .*, or changed its dtype"):
        handle.verify()


def test_another_dtype_that_holds_the_same_values_is_no_change() -> None:
    model = TinyLM().float()
    with freeze(model, adamw(model.parameters()), Region.tensors(model, ["up.weight"])) as handle:
        model.double()
        assert handle.verify() == 60


def test_context_manager_verifies_unless_there_is_an_error_already() -> None:
    model = TinyLM()
    region, optimizer = Region.tensors(model, ["up.bias"]), adamw(model.parameters())
    with pytest.raises(CheckError, match=r"up\.bias"), freeze(model, optimizer, region):
        model.up.bias.data += 1

    def move_and_break() -> None:
        model.up.bias.data += 1
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), freeze(model, optimizer, region):
        move_and_break()
    train(model, list(model.parameters()), optimizer, steps_of_batches(1))
    assert model.up.bias.grad.any()


def test_smallest_change_is_found() -> None:
    model = TinyLM().float()
    region = Region.from_masks({"up.weight": torch.arange(60).view(10, 6) == 7})
    handle = freeze(model, adamw(model.parameters()), region)
    bits = model.up.weight.data.view(torch.int32).view(-1)
    bits[8] ^= 1
    assert handle.verify() == 1
    bits[7] ^= 1
    with pytest.raises(CheckError):
        handle.verify()


def test_another_base_is_refused_unless_told_not_to_look() -> None:
    model, other = TinyLM(), TinyLM(seed=1)
    region = Region.tensors(model, ["up.weight"], base=Base("tiny", None, fingerprint(model)))
    freeze(model, adamw(model.parameters()), region)
    with pytest.raises(UserError, match="another model"):
        freeze(other, adamw(other.parameters()), region)
    freeze(other, adamw(other.parameters()), region, check_base=False)
