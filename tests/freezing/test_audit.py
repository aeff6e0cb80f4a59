"""The audit on one device: faults are found within one interval, by name, entry and step.

And when it looks, what it keeps, and what it leaves when it stops a step or is removed.
"""

from collections.abc import Callable

import pytest
import torch
from frozen_reference import TinyLM, adamw, loss_of, mixed_region, steps_of_batches, train
from torch import Tensor, nn

from freezetrain.errors import CheckError
from freezetrain.freezing import Freeze, freeze
from freezetrain.freezing.audit import Audit
from freezetrain.freezing.hooks import GradientMask, StepGuard
from freezetrain.regions import Entries, Region

(BATCH,) = steps_of_batches(1, 1)[0]


def two_parameters() -> Region:
    return Region(
        {
            "up.weight": Entries.from_indices((10, 6), [7, 20, 33]),
            "down.weight": Entries.from_columns((6, 10), [3]),
        }
    )


class Run:
    """A model in training, one step at a time."""

    def __init__(self, region: Region | None = None, **options) -> None:
        self.model = TinyLM()
        self.region = two_parameters() if region is None else region
        self.optimizer = adamw(self.model.parameters())
        self.handle: Freeze = freeze(self.model, self.optimizer, self.region, **options)

    def backward(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = loss_of(self.model(BATCH), BATCH)
        loss.backward()
        return loss

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.backward()
            self.optimizer.step()


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    dicts = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    for parameter in model.parameters():
        dicts += [parameter._backward_hooks or {}, parameter._post_accumulate_grad_hooks or {}]
    return sum(map(len, dicts))


def changed(run: Run) -> None:
    run.backward()
    run.model.down.weight.grad[2, 3] = 0.5


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


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [1, 2, 4, 7])])
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
def test_one_step_in_so_many_is_audited(
    every: int, expected: list[int], closure: bool, monkeypatch
) -> None:
    steps, judge = [], Audit._judge

    def spy(audit: Audit, *arguments) -> None:
        steps.append(run.handle._guard.step)
        judge(audit, *arguments)

    monkeypatch.setattr(Audit, "_judge", spy)
    run = Run(audit_every=every)
    batches = steps_of_batches(7)
    train(run.model, list(run.model.parameters()), run.optimizer, batches, closure)
    assert steps == expected


def test_every_evaluation_of_a_closure_is_looked_at() -> None:
    run = Run(audit_every=1)
    optimizer = torch.optim.LBFGS(run.model.parameters(), max_iter=3)
    run.handle.remove()
    freeze(run.model, optimizer, run.region, audit_every=1)
    calls = []

    def closure() -> Tensor:
        loss = run.backward()
        calls.append(loss)
        if len(calls) == 3:
            run.model.up.weight.grad.view(-1)[20] = 1.0
        return loss

    with pytest.raises(CheckError, match=r"step 1: the gradient of up\.weight\[20\] is 1\.0"):
        optimizer.step(closure)
    assert len(calls) == 3
    assert torch.equal(run.model.up.weight.view(-1)[20], TinyLM().up.weight.view(-1)[20])


def test_a_step_within_another_is_not_audited_again() -> None:
    """It may leave the gradients in any state."""

    class Twice(torch.optim.SGD):
        def step(self, closure=None) -> None:
            super().step()
            for parameter in self.param_groups[0]["params"]:
                parameter.grad.fill_(1.0)
            super().step()

    run = Run()
    run.handle.remove()
    torch.optim.SGD(run.model.parameters())  # from now on its step runs hooks of its own
    run.optimizer = Twice(run.model.parameters(), lr=1e-2)
    handle = freeze(run.model, run.optimizer, run.region, audit_every=1)
    run.step(2)
    assert handle.verify() == handle.count


def test_the_default_looks_at_the_first_two_steps_and_the_hundred_and_first() -> None:
    run = Run()
    run.step(2)
    with torch.no_grad():
        run.model.up.weight.view(-1)[7] = 0.5
    run.step(98)
    with pytest.raises(CheckError, match=r"step 101: up\.weight\[7\] .* to 0\.5"):
        run.step()


def test_without_audits_nothing_is_kept_and_verify_still_names_the_parameter() -> None:
    run, hooks = Run(audit_every=0), hooks_of(TinyLM(), adamw(TinyLM().parameters()))
    assert hooks == 0
    assert run.handle._audit._values == []
    audited = Run(audit_every=1)
    assert hooks_of(run.model, run.optimizer) == hooks_of(audited.model, audited.optimizer) - 1
    run.step()
    run.model.up.weight.data.view(-1)[20] = 0.25
    run.step()
    with pytest.raises(CheckError, match=r"step 2: frozen entries of up\.weight changed since"):
        run.handle.verify()


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
def test_audits_go_on_after_one_that_said_no(closure: bool) -> None:
    run = Run(audit_every=1)
    for step in (1, 2, 3):
        if not closure:
            changed(run)
        with pytest.raises(CheckError, match=rf"step {step}: the gradient of down\.weight\[23\]"):
            run.optimizer.step((lambda: changed(run)) if closure else None)
    run.step()
    assert run.handle.verify() == 9


def test_what_a_step_that_is_stopped_moved_is_put_back() -> None:
    """LBFGS moves weights between two evaluations of its closure."""
    run = Run(mixed_region(TinyLM()))
    run.handle.remove()
    optimizer = torch.optim.LBFGS(run.model.parameters(), max_iter=3)
    handle = freeze(run.model, optimizer, run.region, audit_every=1)
    calls = []

    def closure() -> Tensor:
        loss = run.backward()
        calls.append(loss)
        if len(calls) == 2:
            run.model.up.weight.data.neg_()  # frozen entries too
            run.model.down.bias.grad.fill_(1.0)
        return loss

    with pytest.raises(CheckError, match=r"down\.bias\[0\] is 1\.0"):
        optimizer.step(closure)
    assert handle.verify() == handle.count


def test_removed_hooks_are_gone() -> None:
    run = Run(audit_every=1)
    assert hooks_of(run.model, run.optimizer) > 0
    run.handle.remove()
    assert hooks_of(run.model, run.optimizer) == 0


def test_a_failure_at_the_start_leaves_no_hooks_behind(monkeypatch) -> None:
    def fail(*_: object) -> list[int]:
        raise CheckError("the ranks start with different frozen values")

    model = TinyLM()
    optimizer = adamw(model.parameters())
    monkeypatch.setattr("freezetrain.freezing.audit._digests", fail)
    with pytest.raises(CheckError, match="different frozen values"):
        freeze(model, optimizer, two_parameters())
    assert hooks_of(model, optimizer) == 0
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_mask_that_fails_half_way_leaves_no_hooks_behind(monkeypatch) -> None:
    model = TinyLM()
    optimizer, register, done = adamw(model.parameters()), GradientMask._register, []

    def fail(mask: GradientMask, shard: object) -> None:
        if done:
            raise RuntimeError("only Tensors of floating point dtype can require gradients")
        register(mask, shard)
        done.append(shard)

    monkeypatch.setattr(GradientMask, "_register", fail)
    with pytest.raises(RuntimeError, match="floating point"):
        freeze(model, optimizer, two_parameters())
    assert hooks_of(model, optimizer) == 0
