"""When the audit looks, what it keeps, and what it leaves when it stops a step or is removed."""

import pytest
import torch
from audited_run import Run, changed, hooks_of, two_parameters
from frozen_reference import TinyLM, adamw, mixed_region, steps_of_batches, train
from torch import Tensor

from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import freeze
from freezetrain.freezing.audit import Audit
from freezetrain.freezing.hooks import GradientMask


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


def test_a_negative_interval_is_refused() -> None:
    with pytest.raises(UserError, match="audit_every must be 0 or more steps, got -1"):
        Run(audit_every=-1)


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
