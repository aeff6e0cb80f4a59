"""The audit on one device: each fault is found within one interval, by name, entry and step."""

from collections.abc import Callable

import pytest
import torch
from audited_run import BATCH, Run, changed
from frozen_reference import TinyLM, adamw, loss_of, mixed_region, steps_of_batches
from torch import Tensor, nn

from freezetrain.errors import CheckError
from freezetrain.freezing import freeze
from freezetrain.freezing.hooks import GradientMask, StepGuard
from freezetrain.regions import Region


def test_a_written_weight_is_named_with_its_values_and_the_step() -> None:
    run = Run(audit_every=1)
    run.step(2)
    before = run.model.up.weight.flatten()[20].item()
    run.model.up.weight.data.view(-1)[[20, 33]] = 0.25
    with pytest.raises(CheckError) as found:
        run.step()
    assert str(found.value).startswith(
        f"step 3: up.weight[20] is frozen and changed from {before} to 0.25; 2 of its frozen "
        "entries here did"
    )
    with pytest.raises(CheckError, match=r"step 3: up\.weight\[20\]"):
        run.handle.verify()


def test_an_entry_of_a_column_is_named_by_its_flat_index() -> None:
    run = Run(audit_every=1)
    run.model.down.weight.data[4, 3] = 0.0
    with pytest.raises(CheckError, match=r"step 1: down\.weight\[43\] .* to 0\.0; 1 of its"):
        run.step()


def test_the_sign_of_a_zero_counts() -> None:
    run = Run(clamp=0.0)
    run.model.up.weight.data.view(-1)[20] = -0.0
    with pytest.raises(CheckError, match=r"up\.weight\[20\] is frozen and changed from 0\.0 to -0"):
        run.handle.verify()


def test_trainable_entries_may_be_written() -> None:
    run = Run(audit_every=1)
    run.model.up.weight.data.view(-1)[21] = 0.25
    run.model.norm.weight.data.zero_()
    run.step(2)
    assert run.handle.verify() == 9


def test_a_replaced_parameter_is_named() -> None:
    run = Run(audit_every=1)
    run.step()
    run.model.down.weight = nn.Parameter(run.model.down.weight.detach().clone())
    with pytest.raises(CheckError, match=r"step 2: down\.weight was replaced by another tensor"):
        run.step()


def assigned(run: Run) -> None:
    loss = loss_of(run.model(BATCH), BATCH)
    parameters = list(run.model.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient


def nan(run: Run) -> None:
    run.backward()
    run.model.down.weight.grad[2, 3] = torch.nan


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (assigned, r"up\.weight\[7\] is (-?[0-9.e-]+)"),
        (changed, r"down\.weight\[23\] is 0\.5"),
        (nan, r"down\.weight\[23\] is nan"),
    ],
)
def test_a_gradient_that_is_not_masked_is_named(
    spoil: Callable[[Run], None], where: str, closure: bool
) -> None:
    run = Run(audit_every=1)
    run.step()
    before = run.model.norm.weight.detach().clone()
    if not closure:
        spoil(run)
    with pytest.raises(CheckError, match=rf"step 2: the gradient of {where}, not zero as at all"):
        run.optimizer.step((lambda: spoil(run)) if closure else None)
    assert torch.equal(run.model.norm.weight, before)  # the step that is stopped does nothing


def test_a_mask_whose_hooks_are_gone_is_found() -> None:
    run = Run(audit_every=2)
    run.step(2)
    run.handle._mask.remove()
    with pytest.raises(CheckError, match=r"step 3: the gradient of up\.weight\[7\]"):
        run.step()


class Untied(nn.Module):
    """Its embedding has no gradient in rows of tokens that do not occur."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(13, 6)
        self.head = nn.Linear(6, 13)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embedding(input_ids))


def test_a_mask_that_never_fires_is_found_even_if_there_is_nothing_to_mask() -> None:
    model = Untied()
    model.embedding.weight.register_post_accumulate_grad_hook(lambda _: None)
    optimizer = adamw(model.parameters())
    region = Region.rows(model, {"embedding.weight": [11, 12], "head.weight": [11]})
    freeze(model, optimizer, region, audit_every=2)
    ids = torch.arange(10)[None]

    def step() -> None:
        optimizer.zero_grad()
        loss_of(model(ids), ids).backward()
        optimizer.step()

    model.embedding.weight._post_accumulate_grad_hooks.clear()
    with pytest.raises(
        CheckError, match=r"step 1: embedding\.weight has a gradient whose .* were never masked"
    ):
        step()


def test_a_gradient_that_is_stepped_twice_is_not_blamed() -> None:
    model = TinyLM()
    optimizer = adamw(model.parameters())
    ((ids,),) = steps_of_batches(1, 1)
    with freeze(model, optimizer, mixed_region(model), audit_every=1):
        loss_of(model(ids), ids).backward()
        optimizer.step()
        optimizer.step()


def test_a_gradient_that_clipping_made_nan_is_not_blamed() -> None:
    """Zeros times a norm that is NaN: the loss is lost, and frozen entries still stay."""
    run = Run(audit_every=1)
    run.backward()
    run.model.norm.bias.grad[0] = torch.nan
    nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    assert run.model.up.weight.grad.isnan().all()
    run.optimizer.step()
    assert run.model.up.weight.isnan().sum() == 57
    assert run.handle.verify() == 9


@pytest.mark.parametrize("every", [1, 3])
def test_a_broken_guard_is_caught_within_one_interval(every: int, monkeypatch) -> None:
    monkeypatch.setattr(StepGuard, "_write", lambda guard: None)
    run = Run(audit_every=every)
    run.step()
    # The first step is looked at before weight decay has moved anything.
    with pytest.raises(CheckError, match=r"step 2: up\.weight\[7\] is frozen and chang"):
        run.step()


def test_a_broken_mask_is_caught_at_once(monkeypatch) -> None:
    monkeypatch.setattr(GradientMask, "_mask", lambda mask, shard, parameter: None)
    run = Run(audit_every=50)
    with pytest.raises(CheckError, match=r"step 1: the gradient of up\.weight\[7\]"):
        run.step()


@pytest.mark.filterwarnings("ignore:Casting complex")
def test_a_written_imaginary_part_is_found() -> None:
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    handle = freeze(model, torch.optim.SGD(model.parameters()), Region.tensors(model, ["weight"]))
    model.weight.data[1] += 1j
    with pytest.raises(CheckError, match=r"weight"):
        handle.verify()


def test_the_digest_is_that_of_the_values_alone() -> None:
    digests = set()
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        model = TinyLM().bfloat16().to(dtype)
        for compiled in (model, torch.compile(model, backend="eager")):
            handle = freeze(compiled, adamw(model.parameters()), mixed_region(model))
            digests.add(handle.digest)
    (digest,) = digests
    assert len(digest) == 16
    assert int(digest, 16) > 0
    other = TinyLM(seed=1).bfloat16()
    assert freeze(other, adamw(other.parameters()), mixed_region(other)).digest != digest
