"""RegionFreezeCallback in the Trainer of transformers, against the model with constants."""

import json
from pathlib import Path

import pytest
import torch
from hf_runs import logged_norms, trainer
from safetensors.torch import load_file
from torch import Tensor, nn
from trainer_reference import Reference, llama, llama_region, next_token_loss, rows, weights_of
from transformers import Trainer, TrainerCallback

from freezetrain.errors import CheckError, UserError
from freezetrain.integrations.hf import RegionFreezeCallback
from freezetrain.regions import Base, Region, fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture(scope="module")
def region() -> Region:
    return llama_region(llama())


def frozen_entries(region: Region, weights: dict[str, Tensor]) -> list[Tensor]:
    return [weights[name][entries.mask()] for name, entries in region.items()]


def holds(region: Region, before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    pairs = zip(frozen_entries(region, before), frozen_entries(region, after), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_users_view(region: Region, tmp_path: Path) -> None:
    """Weight decay, clipping and accumulation, and our callback: nothing else to say."""
    model = llama().double()
    reference = Reference(llama().double(), region, eps=1e-8, decay_norms=False).train()
    run = trainer(model, tmp_path, RegionFreezeCallback(region))
    run.train()
    reference.compare(weights_of(model), rtol=1e-5, atol=1e-7)
    norms = logged_norms(run)
    assert norms == pytest.approx(reference.norms, rel=1e-6)
    # The first step's norm again, from whole gradients: with and without their frozen entries.
    whole = llama().double()
    (batch, *_) = rows().split(8)
    next_token_loss(whole(batch).logits, batch).backward()
    gradients = {name: p.grad for name, p in whole.named_parameters()}
    assert norms[0] < 0.95 * nn.utils.get_total_norm(gradients.values()).item()
    for name, entries in region.items():
        gradients[name][entries.mask()] = 0
    assert norms[0] == pytest.approx(nn.utils.get_total_norm(gradients.values()).item(), rel=1e-6)


def test_bf16_and_gradient_checkpointing(region: Region, tmp_path: Path) -> None:
    model = llama()
    start = weights_of(model)
    callback = RegionFreezeCallback(region, audit_every=1)
    run = trainer(model, tmp_path, callback, steps=2, bf16=True, activation_checkpointing=True)
    run.train()
    assert holds(region, start, weights_of(model))
    assert not torch.equal(model.lm_head.weight, start["lm_head.weight"])


def resume(folder: Path, callback: RegionFreezeCallback, step: int = 2, **options) -> nn.Module:
    model = llama(seed=5)  # whatever: the checkpoint is loaded over it
    run = trainer(model, folder / "again", callback, **options)
    run.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    return model


@pytest.fixture(scope="module")
def saved(region: Region, tmp_path_factory) -> Path:
    """A whole run with a checkpoint after each second step, of a region with a base, clamped."""
    folder = tmp_path_factory.mktemp("saved")
    path = Region(region, base=base()).save(folder / "region.safetensors")
    trainer(
        llama(), folder, RegionFreezeCallback(path, clamp=0.25), save_strategy="steps", save_steps=2
    ).train()
    return folder


def base() -> Base:
    return Base("tiny", None, fingerprint(llama()))


@pytest.mark.parametrize("restore", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_resumed_run_is_the_uninterrupted_one(saved: Path, restore: bool) -> None:
    # The base has moved since, and clamping again would be to another value.
    callback = RegionFreezeCallback(saved / "region.safetensors", clamp=3.0)
    model = resume(saved, callback, restore_callback_states_from_checkpoint=restore)
    whole = load_file(saved / "checkpoint-6" / "model.safetensors")
    for name, value in model.named_parameters():
        assert torch.equal(value, whole[name]), name
    for frozen in frozen_entries(callback.region, weights_of(model)):
        assert (frozen == 0.25).all()


def recorded(checkpoint: Path) -> dict[str, dict[str, str | None]]:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    return state["stateful_callbacks"]["freezetrain"]


def test_checkpoint_holds_the_digests(saved: Path, region: Region) -> None:
    first, last = (recorded(saved / f"checkpoint-{step}") for step in (2, 6))
    assert first == last
    assert first.keys() == {region.digest}
    assert len(first[region.digest]["values"]) == 16


def test_resuming_with_another_region_is_refused(saved: Path, region: Region) -> None:
    other = region.random_like(seed=3)
    with pytest.raises(UserError, match="resume with the same region"):
        resume(saved, RegionFreezeCallback(other))
    saves = {"save_strategy": "steps", "save_steps": 4}
    model = resume(saved, RegionFreezeCallback(other, other_region=True), **saves)
    stored = load_file(saved / "checkpoint-2" / "model.safetensors")
    assert holds(other, stored, weights_of(model))
    assert not holds(region, stored, weights_of(model))
    assert recorded(saved / "again" / "checkpoint-4").keys() == {other.digest}


@pytest.mark.exhaustive
def test_resuming_with_other_values_is_refused(saved: Path, region: Region, tmp_path: Path) -> None:
    run = trainer(
        llama(), tmp_path, RegionFreezeCallback(region), save_strategy="steps", save_steps=2
    )
    run.train()
    # As if the weights had been swapped for those of another run.
    weights = tmp_path / "checkpoint-2" / "model.safetensors"
    weights.write_bytes((saved / "checkpoint-2" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="not those that the checkpoint was trained with"):
        resume(tmp_path, RegionFreezeCallback(region))
    resume(tmp_path, RegionFreezeCallback(region, other_region=True))


@pytest.mark.exhaustive
def test_base_is_checked_where_the_checkpoint_was_not_frozen(
    region: Region, tmp_path: Path
) -> None:
    trainer(llama(), tmp_path, steps=2, save_strategy="steps", save_steps=2).train()
    based = Region(region, base=base())
    with pytest.raises(UserError, match="another model"):
        resume(tmp_path, RegionFreezeCallback(based))
    callback = RegionFreezeCallback(based, check_base=False, clamp=0.5)
    model = resume(tmp_path, callback, save_strategy="steps", save_steps=2)
    assert all((frozen == 0.5).all() for frozen in frozen_entries(region, weights_of(model)))


@pytest.mark.exhaustive
def test_two_regions(region: Region, tmp_path: Path) -> None:
    halves = [region & region.random_like(seed=1)]
    halves.append(region - halves[0])

    def callbacks() -> list[RegionFreezeCallback]:
        return [RegionFreezeCallback(half) for half in halves]

    model = llama()
    trainer(model, tmp_path, *callbacks(), save_strategy="steps", save_steps=2).train()
    assert holds(region, weights_of(llama()), weights_of(model))
    again = trainer(llama(), tmp_path / "again", *callbacks())
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for mine, theirs in zip(again.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(UserError, match="resume with the same region"):
        resume(tmp_path, RegionFreezeCallback(region))


class Watch(TrainerCallback):
    """Keeps the weights of every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []

    def on_train_begin(self, args, state, control, model, **_) -> None:
        self.seen = [weights_of(model)]

    def on_step_end(self, args, state, control, model, **_) -> None:
        self.seen.append(weights_of(model))


@pytest.mark.parametrize("clamp", [pytest.param(None, marks=pytest.mark.exhaustive), 0.0])
def test_schedule(region: Region, tmp_path: Path, clamp: float | None) -> None:
    watch = Watch()
    callback = RegionFreezeCallback(
        Region(region, base=base()), first_step=2, last_step=4, clamp=clamp
    )
    run = trainer(llama(), tmp_path, callback, watch, save_strategy="steps", save_steps=1)
    run.train()
    assert callback.handle is None
    moved = [not holds(region, *pair) for pair in zip(watch.seen, watch.seen[1:], strict=False)]
    assert moved == [True, True, clamp is not None, False, True, True]
    if clamp is not None:
        for step in (3, 4):
            assert not any(frozen.any() for frozen in frozen_entries(region, watch.seen[step]))
    values = [
        recorded(tmp_path / f"checkpoint-{step}")[region.digest]["values"] for step in range(1, 7)
    ]
    assert [value is not None for value in values] == [False, False, True, True, False, False]
    # On from before, within and after: the steps that are left, as they were.
    for step in (1, 2, 3, 4, 5):
        callback = RegionFreezeCallback(
            Region(region, base=base()), first_step=2, last_step=4, clamp=clamp
        )
        model = resume(tmp_path, callback, step)
        for name, value in model.named_parameters():
            assert torch.equal(value, watch.seen[-1][name]), (step, name)


def test_what_does_not_fit_is_refused_before_training(region: Region, tmp_path: Path) -> None:
    based = Region(region, base=base())
    for first_step in (0, 2):
        watch = Watch()
        with pytest.raises(UserError, match="another model"):
            trainer(
                llama(seed=1), tmp_path, RegionFreezeCallback(based, first_step=first_step), watch
            ).train()
        assert not watch.seen
    with pytest.raises(UserError, match="0 <= first_step < last_step, got 3 and 3"):
        RegionFreezeCallback(region, first_step=3, last_step=3)
    with pytest.raises(UserError, match="leave base out"):
        RegionFreezeCallback(region, first_step=3, base={})


class Meddle(TrainerCallback):
    """Writes to a frozen entry when ``event`` comes in or after step 2; may ask for a save."""

    def __init__(self, event: str, saves: bool = False) -> None:
        def act(args, state, control, model, **_):
            if state.global_step == (1 if event == "on_optimizer_step" else 2):
                model.model.norm.weight.data[0] += 1
                control.should_save = control.should_save or saves
            return control

        setattr(self, event, act)


@pytest.mark.parametrize(
    ("event", "options"),
    [
        ("on_optimizer_step", {"save_strategy": "steps", "save_steps": 2}),
        ("on_step_end", {"save_strategy": "epoch", "max_steps": 2, "num_train_epochs": 1}),
        (
            "on_log",
            {
                "save_strategy": "best",
                "eval_strategy": "steps",
                "eval_steps": 2,
                "metric_for_best_model": "loss",
                "greater_is_better": False,
            },
        ),
        ("on_optimizer_step", {}),
    ],
    ids=["steps", "epoch", "best", "end"],
)
def test_moved_entry_stops_the_run_and_is_not_saved(
    region: Region, tmp_path: Path, event: str, options: dict
) -> None:
    callback = RegionFreezeCallback(region)
    run = trainer(llama(), tmp_path / "run", callback, Meddle(event), **options)
    with pytest.raises(CheckError, match=r"model\.norm\.weight\[0\]"):
        run.train()
    assert not list(tmp_path.glob("run/checkpoint-*"))


def test_a_save_that_another_callback_asked_for_is_verified(region: Region, tmp_path: Path) -> None:
    callback = RegionFreezeCallback(region)
    run = trainer(llama(), tmp_path, callback, Meddle("on_step_end", saves=True))
    with pytest.raises(CheckError, match=r"step 2: model\.norm\.weight\[0\]"):
        run.train()


def trains(run: Trainer) -> bool:
    """Whether the frozen final norm gets a gradient again."""
    run.model.zero_grad()
    run.model(input_ids=rows(1)[:2], labels=rows(1)[:2]).loss.backward()
    return bool(run.model.model.norm.weight.grad.any())


def test_freeze_ends_with_training(region: Region, tmp_path: Path) -> None:
    callback = RegionFreezeCallback(region)
    run = trainer(llama(), tmp_path, callback, steps=1)
    run.train()
    assert callback.handle is None
    assert trains(run)
    run = trainer(llama(), tmp_path, callback, Fail(RuntimeError("the disk is full")))
    with pytest.raises(RuntimeError, match="the disk is full"):
        run.train()
    assert not trains(run)
    callback.end()
    assert trains(run)


class Fail(TrainerCallback):
    """Raises once, within the second step; may write to a frozen entry before."""

    def __init__(self, error: Exception, meddles: bool = False) -> None:
        self.error: Exception | None = error
        self.meddles = meddles

    def on_pre_optimizer_step(self, args, state, control, model, **_) -> None:
        if state.global_step == 1 and self.error is not None:
            error, self.error = self.error, None
            if self.meddles:
                model.model.norm.weight.data[0] += 1
            raise error


@pytest.mark.exhaustive
def test_smaller_batches_after_running_out_of_memory(region: Region, tmp_path: Path) -> None:
    """The Trainer begins anew with the model as it is: half trained, and frozen before."""
    model = llama()
    callback = RegionFreezeCallback(Region(region, base=base()), clamp=0.25)
    fail = Fail(RuntimeError("CUDA out of memory."))
    run = trainer(model, tmp_path, callback, fail, auto_find_batch_size=True)
    run.train()
    assert fail.error is None
    assert all((frozen == 0.25).all() for frozen in frozen_entries(region, weights_of(model)))
    # Unless what was frozen did not hold: then it is not the base's any more.
    fail = Fail(RuntimeError("CUDA out of memory."), meddles=True)
    run = trainer(llama(), tmp_path, callback, fail, auto_find_batch_size=True)
    with pytest.raises(UserError, match="another model"):
        run.train()


@pytest.mark.exhaustive
def test_best_model_may_be_of_before_the_freeze(region: Region, tmp_path: Path) -> None:
    scores = iter([0.0, 1.0, 2.0])
    run = trainer(
        llama(),
        tmp_path,
        RegionFreezeCallback(region, first_step=3),
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    evaluate = run.evaluate
    run.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_loss": next(scores)}
    run.train()
    assert run.state.best_global_step == 2
    stored = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert torch.equal(run.model.model.norm.weight, stored["model.norm.weight"])
