"""BasePullCallback in the Trainer of transformers, against a plain loop with the closed form."""

from pathlib import Path

import pytest
import torch
from hf_runs import logged_norms, trainer
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from trainer_reference import (
    STRENGTH,
    STRONG,
    Reference,
    llama,
    llama_region,
    strengths,
    strong_region,
    weights_of,
)
from transformers import Trainer, TrainerCallback

from freezetrain.errors import UserError
from freezetrain.integrations.hf import RegionFreezeCallback
from freezetrain.integrations.hf_pull import BasePullCallback
from freezetrain.regions import Region

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Another model than the one that is trained, so that it cannot be taken from that."""
    folder = tmp_path_factory.mktemp("base")
    llama(seed=3).save_pretrained(folder)
    return folder


def pulling(base: Path, **options) -> BasePullCallback:
    return BasePullCallback(STRENGTH, base, [(strong_region(llama()), STRONG)], **options)


def test_users_view(base: Path, tmp_path: Path) -> None:
    """Accumulation, clipping and weight decay, and our callback: nothing else to say."""
    model = llama().double()
    reference = Reference(llama().double(), Region({}), eps=1e-8, decay_norms=False)
    reference.pulled(strengths(llama()), weights_of(llama(seed=3)))
    run = trainer(model, tmp_path, pulling(base, on_cpu=True))
    run.train()
    reference.compare(weights_of(model), rtol=1e-5, atol=1e-7)
    assert logged_norms(run) == pytest.approx(reference.norms, rel=1e-6)


@pytest.mark.parametrize("first", ["freeze", "pull"])
def test_beside_a_freeze(base: Path, tmp_path: Path, first: str) -> None:
    region, model = llama_region(llama()), llama().double()
    reference = Reference(llama().double(), region, eps=1e-8, decay_norms=False)
    reference.pulled(strengths(llama()), weights_of(llama(seed=3)))
    callbacks = [RegionFreezeCallback(region, audit_every=1), pulling(base)]
    run = trainer(model, tmp_path, *(callbacks if first == "freeze" else callbacks[::-1]))
    run.train()
    reference.compare(weights_of(model), rtol=1e-5, atol=1e-7)


def lines(run: Trainer) -> list[dict]:
    return [line for line in run.state.log_history if "pull/lm_head.weight" in line]


@pytest.fixture(scope="module")
def saved(base: Path, tmp_path_factory) -> tuple[Path, Trainer]:
    folder = tmp_path_factory.mktemp("saved")
    callback = pulling(base, log_every_n_steps=2)
    run = trainer(llama(), folder, callback, steps=5, save_strategy="steps", save_steps=3)
    run.train()
    return folder, run


def resume(folder: Path, again: Path, callback: BasePullCallback) -> Trainer:
    run = trainer(llama(seed=5), again, callback, steps=5)
    run.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    return run


def test_a_resumed_run_is_pulled_to_the_base_not_to_where_it_was(
    base: Path, saved: tuple[Path, Trainer], tmp_path: Path
) -> None:
    folder, whole = saved
    resumed = resume(folder, tmp_path, pulling(base, log_every_n_steps=2))
    for name, value in weights_of(whole.model).items():
        assert torch.equal(resumed.model.get_parameter(name), value), name
    assert lines(resumed) == lines(whole)
    assert [line["step"] for line in lines(whole)] == [2, 4, 5]
    moved = load_file(folder / "checkpoint-3" / "model.safetensors")
    other = resume(folder, tmp_path, BasePullCallback(STRENGTH, moved))
    assert not torch.allclose(other.model.lm_head.weight, whole.model.lm_head.weight, atol=1e-2)


def test_what_the_trainer_reports_to_gets_the_distances(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run = trainer(llama(), tmp_path, steps=3, report_to=["tensorboard"])
    run.add_callback(pulling(base, log_every_n_steps=2, log=run.log))
    run.train()
    start, end = weights_of(llama(seed=3)), weights_of(run.model)
    line = lines(run)[-1]
    for name, members in (
        ("lm_head.weight", ["lm_head.weight"]),
        (
            "model.layers.*.mlp.up_proj.weight",
            [f"model.layers.{n}.mlp.up_proj.weight" for n in (0, 1)],
        ),
    ):
        moved = sum(float((end[m] - start[m]).square().sum()) for m in members)
        size = sum(float(start[m].square().sum()) for m in members)
        assert line[f"pull/{name.replace('*', 'N')}"] == pytest.approx(
            (moved / size) ** 0.5, rel=1e-5
        )
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    logged = events.Scalars("train/pull/lm_head.weight")
    assert [event.step for event in logged] == [2, 3]
    assert logged[-1].value == pytest.approx(line["pull/lm_head.weight"], rel=1e-6)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]  # as without it


class Stops(TrainerCallback):
    """Ends training within the second step, or by an exception."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.seen: list[dict[str, Tensor]] = []

    def on_step_end(self, args, state, control, model, **_) -> None:
        self.seen.append(weights_of(model))
        if state.global_step == 2 and self.error is not None:
            raise self.error
        control.should_training_stop = state.global_step == 2


def test_it_ends_with_training(base: Path, tmp_path: Path) -> None:
    callback = pulling(base)
    run = trainer(llama(), tmp_path, callback, Stops())  # whose turn comes after the callback's
    run.train()
    assert callback.handle is None
    assert [line["step"] for line in lines(run)] == [2]
    run = trainer(llama(), tmp_path, callback, Stops(RuntimeError("the disk is full")))
    with pytest.raises(RuntimeError, match="the disk is full"):
        run.train()
    hooks = run.optimizer.optimizer._optimizer_step_post_hooks
    count = len(hooks)
    callback.end()
    assert callback.handle is None
    assert len(hooks) == count - 1


def test_what_cannot_be_is_refused_before_training(base: Path, tmp_path: Path) -> None:
    watch = Stops()
    for callback, complaint in (
        (BasePullCallback(1.0, tmp_path / "nowhere"), "expected a model folder, there is none"),
        (BasePullCallback(1.0, {"lm_head.weight": torch.zeros(1)}), "holds no 'model.embed"),
        (BasePullCallback(1.0, base, module="modle"), "no module 'modle'.*'model'"),
    ):
        with pytest.raises(UserError, match=complaint):
            trainer(llama(), tmp_path, callback, watch).train()
        assert not watch.seen
    with pytest.raises(UserError, match=r"a number, 0 or more, got -1\.0"):
        BasePullCallback(1.0, base, {"region.safetensors": -1.0})
    with pytest.raises(UserError, match="log_every_n_steps must be 1 or more, got 0"):
        BasePullCallback(1.0, base, log_every_n_steps=0)
