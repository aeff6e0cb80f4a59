"""ForgettingTrackerCallback in the Trainer of transformers, on one process."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hf_runs import logged_norms, trainer
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from trainer_reference import llama, weights_of
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from watched_texts import texts

from freezetrain.errors import UserError
from freezetrain.evaluation import evaluate, evaluate_documents, forgetting
from freezetrain.integrations.hf_forgetting import ForgettingTrackerCallback

pytestmark = pytest.mark.filterwarnings("ignore:.*pin_memory.*")


def tracker(**options) -> ForgettingTrackerCallback:
    settings = {"every_n_steps": 2, "max_length": 16, "table": False, **options}
    return ForgettingTrackerCallback(texts(), "sw", **settings)


def steps(tracker: ForgettingTrackerCallback) -> list[int]:
    return [evaluation.step for evaluation in tracker.history.evaluations]


def scalars(run: Trainer) -> list[dict]:
    return [line for line in run.state.log_history if "forgetting/mean" in line]


@pytest.mark.parametrize(
    ("watch", "arguments", "expected"),
    [
        ({}, {"steps": 5}, [0, 2, 4, 5]),
        pytest.param({}, {"steps": 6}, [0, 2, 4, 6], marks=pytest.mark.exhaustive),
        ({"every_n_steps": 4}, {"steps": -1, "num_train_epochs": 1}, [0, 4, 6]),
        ({"every_n_steps": None, "at_samples": (8, 30)}, {"steps": 6}, [0, 1, 4, 6]),
        (
            {"every_n_steps": None, "every_n_tokens": 150},  # 72 a step
            {"steps": 6, "include_num_input_tokens_seen": "all"},
            [0, 3, 5, 6],
        ),
    ],
)
def test_it_evaluates_at_the_start_when_due_and_at_the_end(tmp_path, watch, arguments, expected):
    watched = tracker(**watch)
    run = trainer(llama(), tmp_path, watched, **arguments)
    run.train()
    assert steps(watched) == expected
    assert [line["step"] for line in scalars(run)] == expected
    for evaluation in watched.history.evaluations:
        assert evaluation.samples == evaluation.step * 8
        if "include_num_input_tokens_seen" in arguments:
            assert evaluation.tokens == evaluation.step * 72


def test_what_it_finds_is_what_evaluate_finds(tmp_path):
    watched, model = tracker(), llama()
    base = evaluate_documents(model, texts(), max_length=16)
    run = trainer(model, tmp_path, watched, steps=3)
    run.train()
    adapted = evaluate_documents(model, texts(), max_length=16)
    assert watched.history.last.forgetting == forgetting(base, adapted, "sw")
    assert watched.history.last.figures == {n: sums.figures() for n, sums in adapted.items()}
    expected = {**watched.history.scalars(), "epoch": run.state.epoch, "step": 3}
    assert scalars(run)[-1] == expected


def test_training_is_bit_identical_with_and_without_it(tmp_path):
    plain = trainer(with_dropout(), tmp_path, steps=4)
    plain.train()
    watched = trainer(with_dropout(), tmp_path, steps=4)  # which seeds as the other did
    watched.add_callback(tracker(every_n_steps=1, log=watched.log))
    watched.train()
    assert logged_norms(watched) == logged_norms(plain)
    losses = [
        [line["loss"] for line in run.state.log_history if "loss" in line]
        for run in (watched, plain)
    ]
    assert len(losses[0]) == 4, "the losses are logged as without it"
    assert losses[0] == losses[1]
    after = weights_of(plain.model)
    for name, value in weights_of(watched.model).items():
        assert torch.equal(value, after[name]), name


def with_dropout() -> nn.Module:
    model = llama()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return model


def test_what_the_trainer_reports_to_gets_the_scalars(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    run = trainer(llama(), tmp_path, steps=3, report_to=["tensorboard"])
    watched = tracker(log=run.log)
    run.add_callback(watched)
    run.train()
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    for tag, value in watched.history.scalars().items():
        logged = events.Scalars(f"train/{tag}")
        assert [event.step for event in logged] == [0, 2, 3]
        assert logged[-1].value == pytest.approx(value, rel=1e-6)
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[Path, ForgettingTrackerCallback]:
    folder, watched = tmp_path_factory.mktemp("saved"), tracker()
    trainer(llama(), folder, watched, steps=5, save_strategy="steps", save_steps=3).train()
    return folder, watched


@pytest.mark.parametrize("restore", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_the_base_survives_a_resumed_run(saved, tmp_path, restore):
    folder, whole = saved
    resumed = tracker(results_path=tmp_path / "results.json")
    options = {"restore_callback_states_from_checkpoint": restore}
    run = trainer(llama(seed=5), tmp_path, resumed, steps=5, **options)
    run.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert steps(resumed) == [0, 2, 4, 5]
    assert resumed.history.evaluations == whole.history.evaluations
    written = json.loads((tmp_path / "results.json").read_text())
    assert [entry["step"] for entry in written["evaluations"]] == [0, 2, 4, 5]


def kept(checkpoint: Path) -> tuple[list[int], int]:
    """The steps that were evaluated, and the last that was seen."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state = state["stateful_callbacks"]["freezetrain.forgetting"]
    return [entry["step"] for entry in state["evaluations"]], state["trained"][0]


def test_a_checkpoint_holds_what_is_known_at_its_step(saved, tmp_path):
    assert kept(saved[0] / "checkpoint-3") == ([0, 2], 3)
    assert kept(saved[0] / "checkpoint-5") == ([0, 2, 4, 5], 5)
    # Also where another callback ends and saves the run, after the tracker's turn or before it.
    trainer(llama(), tmp_path / "a", tracker(), StopsAt(2, saves=True)).train()
    assert kept(tmp_path / "a" / "checkpoint-2") == ([0, 2], 2)
    trainer(llama(), tmp_path / "b", StopsAt(3, saves=True), tracker()).train()
    assert kept(tmp_path / "b" / "checkpoint-3") == ([0, 2, 3], 3)
    epochs = {"steps": -1, "num_train_epochs": 2, "save_strategy": "epoch"}
    trainer(llama(), tmp_path / "c", tracker(every_n_steps=4), **epochs).train()
    assert kept(tmp_path / "c" / "checkpoint-6") == ([0, 4], 6)


@pytest.mark.parametrize(
    ("step", "change", "message"),
    [
        (3, {"max_length": 8}, "max_length 16, got 8"),
        (3, {"documents": texts(2)}, "resume with the same documents"),
        (2, {}, "resumes at step 2 from a checkpoint without a base .* ForgettingTrackerCallback"),
    ],
)
def test_a_base_of_something_else_is_refused(saved, tmp_path, step, change, message):
    folder = saved[0]
    if step == 2:
        folder = tmp_path
        trainer(llama(), folder, steps=2, save_strategy="steps", save_steps=2).train()
    settings = {"documents": texts(), "target": "sw", "max_length": 16, **change}
    run = trainer(llama(), tmp_path / "again", ForgettingTrackerCallback(**settings))
    with pytest.raises(UserError, match=message):
        run.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))


class StopsAt(TrainerCallback):
    """Ends training."""

    def __init__(self, step: int, saves: bool = False) -> None:
        self.step, self.saves = step, saves

    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step == self.step:
            control.should_training_stop = True
            control.should_save = control.should_save or self.saves


def test_a_run_that_a_later_callback_ends(tmp_path):
    watched, model = tracker(), llama()
    trainer(model, tmp_path, watched, StopsAt(3)).train()
    assert steps(watched) == [0, 2, 3]
    assert watched.history.last.figures == evaluate(model, texts(), max_length=16)


def test_the_best_model_is_not_taken_for_that_of_the_last_step(tmp_path):
    watched = tracker(every_n_steps=4)
    run = trainer(
        llama(),
        tmp_path,
        watched,
        EarlyStoppingCallback(1),
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    losses, real = iter([1.0, 2.0, 3.0]), run.evaluate
    run.evaluate = lambda *args, **told: {**real(*args, **told), "eval_loss": next(losses)}
    run.train()
    assert run.state.best_global_step == 1
    assert steps(watched) == [0, run.state.global_step]
    last = llama()  # what was evaluated before the best model was loaded
    last.load_state_dict(
        load_file(tmp_path / f"checkpoint-{run.state.global_step}" / "model.safetensors")
    )
    assert watched.history.last.figures == evaluate(last, texts(), max_length=16)


@pytest.mark.exhaustive
def test_smaller_batches_after_running_out_of_memory(tmp_path):
    """The Trainer begins anew: so does the watch, over its own results."""

    class Fail(TrainerCallback):
        failed = False

        def on_step_end(self, args, state, control, **_) -> None:
            if not self.failed:
                self.failed = True
                raise RuntimeError("CUDA out of memory.")

    watched = tracker(results_path=tmp_path / "results.json")
    # After our callback, so that the base was evaluated and written.
    run = trainer(llama(), tmp_path, watched, Fail(), steps=2, auto_find_batch_size=True)
    run.train()
    assert steps(watched) == [0, 2]
    assert watched.history.last.samples == 2 * 4 * run._train_batch_size


def test_the_table_is_written_past_the_progress_bar(tmp_path, capsys):
    trainer(llama(), tmp_path, tracker(table=True), steps=2, disable_tqdm=False).train()
    assert capsys.readouterr().out.count("Forgetting at step") == 2


def arguments(**changes) -> SimpleNamespace:
    return SimpleNamespace(
        **{"include_num_input_tokens_seen": "no", "parallelism_config": None, **changes}
    )


def test_what_cannot_work_is_refused_before_training(tmp_path):
    by_tokens = tracker(every_n_steps=None, every_n_tokens=5)
    with pytest.raises(UserError, match="include_num_input_tokens_seen='no'; set it to 'all'"):
        trainer(llama(), tmp_path, by_tokens).train()
    shared = SimpleNamespace(tp_size=2, cp_size=1, sp_size=1)
    with pytest.raises(UserError, match=r"ranks that share a batch .*'tp_size': 2"):
        tracker()._check(arguments(parallelism_config=shared), llama())
    tracker()._check(arguments(), llama())
    sharded = nn.Sequential(FullyShardedDataParallel.__new__(FullyShardedDataParallel))
    with pytest.raises(UserError, match="cannot evaluate under FSDP1"):
        tracker()._check(arguments(), sharded)
