"""The callbacks in loops that call fewer of a Trainer's hooks than transformers' own."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from trainer_reference import llama, llama_region, next_token_loss, rows, weights_of
from transformers import TrainerControl, TrainerState, TrainingArguments
from watched_texts import LENGTH, texts

from freezetrain.errors import CheckError, UserError
from freezetrain.integrations import hf_forgetting
from freezetrain.integrations.hf import RegionFreezeCallback


def loop(model, callback, folder, steps=4, hooks=("on_step_end",), state=None):
    """A loop as TRL's PPOTrainer had one: of all hooks around a step it calls only these."""
    args = TrainingArguments(str(folder), report_to=[], use_cpu=True)
    state = state or TrainerState(max_steps=steps)
    control = TrainerControl()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    given = {"model": model, "optimizer": optimizer}
    seen = []

    def call(hook):
        getattr(callback, hook)(args, state, control, **given)

    call("on_train_begin")
    for batch in rows().split(8)[state.global_step : steps]:
        if "on_step_begin" in hooks:
            call("on_step_begin")
        next_token_loss(model(batch).logits, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
        if "on_step_end" in hooks:
            call("on_step_end")
        seen.append(weights_of(model))
    call("on_train_end")
    return seen, state


def moved(region, before, after):
    return sum(int((before[n][e.mask()] != after[n][e.mask()]).sum()) for n, e in region.items())


@pytest.mark.parametrize("hooks", [("on_step_end",), ("on_step_begin", "on_step_end")])
def test_a_freeze_begins_and_ends_by_whatever_hook_there_is(tmp_path, hooks):
    model = llama()
    region = llama_region(model)
    callback = RegionFreezeCallback(region, first_step=1, last_step=3)
    seen, state = loop(model, callback, tmp_path, steps=4, hooks=hooks)
    assert moved(region, seen[0], seen[2]) == 0
    assert moved(region, seen[2], seen[3]) > 0
    digests = state.stateful_callbacks["freezetrain"][region.digest]
    assert digests["region"] == region.digest


def test_digests_are_recorded_and_looked_at_on_resuming(tmp_path):
    model = llama()
    region = llama_region(model)
    _, state = loop(model, RegionFreezeCallback(region), tmp_path, steps=2)
    assert state.stateful_callbacks["freezetrain"][region.digest]["values"] is not None
    saved = TrainerState(max_steps=4, global_step=2, stateful_callbacks=state.stateful_callbacks)
    with pytest.raises(UserError, match="resume with the same region"):
        loop(model, RegionFreezeCallback(region.random_like(seed=7)), tmp_path, state=saved)


def test_digests_are_in_the_state_before_the_first_step(tmp_path):
    model = llama()
    region = llama_region(model)
    _, state = loop(model, RegionFreezeCallback(region), tmp_path, steps=0, hooks=())
    assert state.stateful_callbacks["freezetrain"][region.digest]["values"] is not None


def test_a_freeze_that_was_due_and_never_began_is_an_error(tmp_path):
    model = llama()
    callback = RegionFreezeCallback(llama_region(model), first_step=1)
    with pytest.raises(CheckError, match=r"was to begin at step 1 and never did in 3 steps"):
        loop(model, callback, tmp_path, steps=3, hooks=())


class Two(nn.Module):
    """A policy and its value model, which a region fits both of."""

    def __init__(self):
        super().__init__()
        self.policy, self.value = llama(), llama(seed=1)

    def forward(self, batch):
        return SimpleNamespace(logits=self.policy(batch).logits + 0 * self.value(batch).logits)


def test_the_module_that_is_meant(tmp_path):
    model = Two()
    region = llama_region(model.policy)
    with pytest.raises(UserError, match="fits the submodules"):
        loop(model, RegionFreezeCallback(region), tmp_path, steps=1)
    with pytest.raises(UserError, match=r"no module 'polcy' \(did you mean 'policy'"):
        loop(model, RegionFreezeCallback(region, module="polcy"), tmp_path, steps=1)
    before = weights_of(model.policy)
    loop(model, RegionFreezeCallback(region, module="policy"), tmp_path, steps=2)
    assert moved(region, before, weights_of(model.policy)) == 0


@pytest.mark.parametrize("hooks", [("on_step_end",), ("on_step_begin", "on_step_end")])
def test_the_base_is_logged_once_logging_is_possible_and_under_its_step(tmp_path, hooks):
    model = Two()
    logged = []
    state = TrainerState(max_steps=2)
    tracker = hf_forgetting.ForgettingTrackerCallback(
        texts(), every_n_steps=1, max_length=LENGTH, table=False, module="policy",
        log=lambda scalars: logged.append((state.global_step, scalars)),
    )  # fmt: skip
    args = TrainingArguments(str(tmp_path), report_to=[], use_cpu=True)
    tracker.on_train_begin(args, state, TrainerControl(), model=model, optimizer=None)
    assert logged == []  # callbacks after this one have not seen on_train_begin
    assert state.stateful_callbacks["freezetrain.forgetting"]["evaluations"]
    for _ in range(2):
        if "on_step_begin" in hooks:
            tracker.on_step_begin(args, state, TrainerControl(), model=model)
        state.global_step += 1
        tracker.on_step_end(args, state, TrainerControl(), model=model)
    assert [step for step, _ in logged] == [0, 1, 2]
    assert len(tracker.history.evaluations) == 3
