"""The brake on one device; for two ranks of every engine see training/test_brake_engines.py."""

import os
from pathlib import Path

import lightning as L
import pytest
import torch
from forgetful import DOCUMENTS, EVERY, STEPS, Module, learn_what_is_held_out
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from freezetrain.callbacks import (
    BaseAverage,
    ForgettingBrake,
    ForgettingTracker,
    RegionFreeze,
    WeightAverage,
    checkpoint_files,
)
from freezetrain.errors import CheckError, UserError
from freezetrain.regions import Region
from freezetrain.training.checkpoints import StepCheckpoint, latest_checkpoint

pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory", "ignore:.*in eval mode", "ignore:Be aware that when using"
)


@pytest.fixture(scope="module")
def base(make_model) -> dict[str, torch.Tensor]:
    """The weights of a model that knows what is held out."""
    model = make_model()
    learn_what_is_held_out(model)
    return model.state_dict()


class Brakes:
    """Fits of the same module, each with another brake."""

    def __init__(self, make_model, base, folder: Path):
        self.make_model, self.base, self.folder = make_model, base, folder

    def module(self) -> Module:
        model = self.make_model()
        model.load_state_dict(self.base)
        return Module(model)

    def fit(self, brake=None, *more, steps=STEPS, **options) -> tuple[Module, L.Trainer]:
        """``brake``: arguments of ForgettingBrake but the tracker, or none."""
        module = self.module()
        self.tracker = ForgettingTracker(
            DOCUMENTS, "new", every_n_steps=EVERY, max_length=24, table=False
        )
        callbacks: list = [self.tracker]
        if brake is not None:
            self.brake = ForgettingBrake(self.tracker, **{"folder": self.folder / "kept", **brake})
            callbacks.append(self.brake)
        checkpoint = options.pop("ckpt_path", None)
        trainer = L.Trainer(
            **{
                "accelerator": "cpu",
                "max_steps": steps,
                "accumulate_grad_batches": 2,
                "callbacks": [*callbacks, *more],
                "logger": False,
                "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in more),
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "default_root_dir": self.folder,
                **options,
            }
        )
        trainer.fit(module, ckpt_path=checkpoint, weights_only=True)
        return module, trainer

    def lost(self) -> dict[int, float]:
        """Step -> what the old language has lost."""
        return {
            evaluation.step: evaluation.forgetting.languages["old"].relative
            for evaluation in self.tracker.history.evaluations
        }

    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "kept").iterdir())


@pytest.fixture
def brakes(make_model, base, tmp_path) -> Brakes:
    return Brakes(make_model, base, tmp_path)


@pytest.fixture(scope="module")
def limit(make_model, base, tmp_path_factory) -> float:
    """What the old language may lose: more than after 4 steps, less than after 6."""
    free = Brakes(make_model, base, tmp_path_factory.mktemp("free"))
    free.fit()
    lost = free.lost()
    assert list(lost) == [0, 2, 4, 6, 8]
    assert 0 == lost[0] < lost[2] < 0.95 * lost[4] + 0.05 * lost[6] < lost[6]
    return (lost[4] + lost[6]) / 2


def same(weights: dict, other: dict) -> bool:
    assert weights.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in weights.items())


def test_rolls_back_to_the_last_step_within_the_limit(brakes, limit, capsys):
    module, trainer = brakes.fit({"limits": {"old": limit}, "action": "roll_back"})
    assert trainer.global_step == 6
    assert same(module.weights(), module.course[4])
    assert int(module.count) == 4
    assert not same(module.course[4], module.course[6])
    assert brakes.kept() == ["step=4.ckpt"]
    results = brakes.brake.results()
    assert (results["ended_at_step"], results["model_step"]) == (6, 4)
    assert brakes.brake.model.step == 4
    said = capsys.readouterr().out
    assert "old has lost" in said
    assert "at step 6, more than the limit" in said
    assert "training ends, and the model is that of step 4" in said


def test_stops_with_the_weights_of_that_step(brakes, limit):
    module, trainer = brakes.fit({"limits": {"old": limit}, "folder": None})
    assert trainer.global_step == 6
    assert same(module.weights(), module.course[6])
    assert brakes.brake.results()["model_step"] == 6


def test_warns_and_goes_on(brakes, limit, capsys):
    module, trainer = brakes.fit({"limits": {"old": limit}, "action": "warn", "folder": None})
    assert trainer.global_step == STEPS
    assert same(module.weights(), module.course[STEPS])
    assert capsys.readouterr().out.count("training goes on") == 2
    assert brakes.brake.results()["ended_at_step"] is None


def test_selects_the_step_that_gained_most_within_the_limit(brakes, limit):
    module, trainer = brakes.fit({"limits": {"old": limit}, "action": "select"})
    assert trainer.global_step == STEPS
    gains = {
        evaluation.step: evaluation.forgetting.target_gain
        for evaluation in brakes.tracker.history.evaluations
    }
    best = max((step for step in gains if brakes.lost()[step] <= limit), key=gains.__getitem__)
    assert best != max(gains, key=gains.__getitem__)
    assert same(module.weights(), module.course[best])
    assert brakes.brake.results()["model_step"] == best


def test_the_base_comes_back_where_the_first_evaluation_is_too_much(brakes):
    module, trainer = brakes.fit({"limits": {"old": 1e-6}, "action": "roll_back"})
    assert trainer.global_step == 2
    assert same(module.weights(), module.course[0])


def test_a_last_step_that_is_too_much_is_gone_back_from(brakes, limit):
    module, trainer = brakes.fit({"limits": {"old": limit}, "action": "roll_back"}, steps=6)
    assert trainer.global_step == 6
    assert same(module.weights(), module.course[4])


def test_an_evaluation_after_the_last_step_counts(brakes, limit, capsys):
    class StopsAt5(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 5

    braking = {"limits": {"old": 1e-6 + limit}, "action": "roll_back"}
    brakes.fit(braking, StopsAt5())
    lost = brakes.lost()
    assert list(lost) == [0, 2, 4, 5]
    braking["limits"]["old"] = (lost[4] + lost[5]) / 2
    module, _ = brakes.fit({**braking, "overwrite": True}, StopsAt5())
    assert brakes.brake.results()["ended_at_step"] == 5
    assert "at step 5, more than the limit" in capsys.readouterr().out
    assert same(module.weights(), module.course[4])


@pytest.mark.parametrize("action", ["roll_back", "select"])
def test_training_is_the_same_bit_for_bit(brakes, action):
    plain, _ = brakes.fit()
    held, _ = brakes.fit({"limits": {"old": 100.0}, "action": action})
    assert list(plain.course) == list(held.course) == list(range(STEPS + 1))
    assert all(same(weights, held.course[step]) for step, weights in plain.course.items())
    assert same(held.weights(), held.course[STEPS])


def test_the_trainers_checkpoint_is_of_the_step_that_training_came_to(brakes, limit):
    saver = ModelCheckpoint(
        brakes.folder / "own", filename="{step}", save_last=True, every_n_train_steps=100
    )
    module, _ = brakes.fit({"limits": {"old": limit}, "action": "roll_back"}, saver)
    saved = list((brakes.folder / "own").iterdir())
    assert saved
    for path in saved:
        held = torch.load(path, weights_only=True)
        assert held["global_step"] == 6
        assert same(held["state_dict"], module.course[6])


class Killed(BaseException):
    """As by SIGKILL: nothing catches it but the test."""


def count_down(monkeypatch, left: int) -> None:
    """Die before the ``left``-th call that changes what lies on the disk."""

    def dies(act):
        def called(*args, **kwargs):
            nonlocal left
            left -= 1
            if not left:
                raise Killed
            return act(*args, **kwargs)

        return called

    for place, name in ((os, "replace"), (os, "fsync"), (Path, "unlink")):
        monkeypatch.setattr(place, name, dies(getattr(place, name)))
    for name in ("bring_back", "save_weights"):
        monkeypatch.setattr(checkpoint_files, name, dies(getattr(checkpoint_files, name)))


@pytest.mark.parametrize(
    ("action", "every", "first"),
    [
        ("roll_back", 3, 3),
        pytest.param("roll_back", 1, 1, marks=pytest.mark.exhaustive),
        pytest.param("select", 1, 2, marks=pytest.mark.exhaustive),
        pytest.param("select", 3, 1, marks=pytest.mark.exhaustive),
    ],
)
def test_killed_at_any_point_it_comes_to_the_same(
    make_model, base, tmp_path, limit, monkeypatch, action, every, first
):
    """At every third point, from the first, second or third on: each point takes two runs."""

    def run(name: str):
        brakes = Brakes(make_model, base, tmp_path / name)
        braking = {"limits": {"old": limit}, "action": action, "overwrite": True}
        checkpoint = latest_checkpoint(brakes.folder)
        saver = StepCheckpoint(brakes.folder, every)
        module, trainer = brakes.fit(braking, saver, ckpt_path=checkpoint)
        brakes.brake.ensure(trainer)
        return module.weights(), brakes.brake.results()

    expected, results = run("whole")
    assert results["model_step"] == 4
    kills = 0
    for number, point in enumerate(range(first, 200, 3), start=1):
        with monkeypatch.context() as patched:
            count_down(patched, point)
            try:
                run(str(point))
            except Killed:
                kills += 1
        weights, again = run(str(point))
        assert same(weights, expected), point
        assert again == results
        assert len(list((tmp_path / str(point) / "kept").iterdir())) <= 2
        if kills < number:
            break
    assert kills > 5


class Dies(L.Callback):
    """In the midst of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


def test_killed_twice_it_still_has_what_its_checkpoint_goes_back_to(brakes, limit):
    braking = {"limits": {"old": limit}, "action": "roll_back", "overwrite": True}
    for _ in range(2):  # after step 3's checkpoint, and after step 4 was kept in the place of 2
        checkpoint = latest_checkpoint(brakes.folder)
        with pytest.raises(Killed):
            brakes.fit(braking, Dies(5), StepCheckpoint(brakes.folder, 3), ckpt_path=checkpoint)
        assert brakes.kept() == ["step=2.ckpt", "step=4.ckpt"]
    saver = StepCheckpoint(brakes.folder, 3)
    module, _ = brakes.fit(braking, saver, ckpt_path=latest_checkpoint(brakes.folder))
    assert brakes.brake.results()["model_step"] == 4
    assert same(module.weights(), module.course[4])
    assert brakes.kept() == ["step=4.ckpt"]


def test_a_step_that_was_kept_and_is_gone_is_missed_before_training(brakes, limit):
    braking = {"limits": {"old": limit}, "action": "roll_back"}
    with pytest.raises(Killed):
        brakes.fit(braking, Dies(5), StepCheckpoint(brakes.folder, 1))
    path = brakes.folder / "kept" / "step=4.ckpt"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"back to step 4, whose weights in .* or damaged"):
        brakes.fit(braking, ckpt_path=latest_checkpoint(brakes.folder))
    path.unlink()
    with pytest.raises(UserError, match="back to step 4, whose weights"):
        brakes.fit(braking, ckpt_path=latest_checkpoint(brakes.folder))


def test_what_comes_back_is_verified_by_a_freeze(brakes, limit):
    region = Region.random(brakes.module().model, 0.1, seed=1)
    braking = {"limits": {"old": limit}, "action": "roll_back"}

    def freeze():
        return RegionFreeze(region, check_base=False)

    module, _ = brakes.fit(braking, freeze())
    step = brakes.brake.results()["model_step"]
    assert same(module.weights(), module.course[step])

    class Harms(L.Callback):
        def on_train_end(self, trainer, pl_module):
            raise AssertionError("not reached: the freeze comes first")

        def on_train_batch_end(self, trainer, pl_module, *_):
            path = brakes.folder / "kept" / f"step={step}.ckpt"
            if trainer.should_stop:
                held = torch.load(path, weights_only=True)
                for value in held["state_dict"].values():
                    value += 1
                torch.save(held, path)

    with pytest.raises(CheckError, match="is frozen and changed"):
        brakes.fit({**braking, "overwrite": True}, freeze(), Harms())


def test_weights_are_verified_before_they_are_kept(brakes, limit):
    region = Region.random(brakes.module().model, 0.1, seed=1)

    class Moves(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, *_):
            if trainer.global_step == 3:
                with torch.no_grad():
                    for frozen in region.resolve(pl_module.model):
                        frozen.parameter.add_(1)

    braking = {"limits": {"old": 1e6}, "action": "roll_back"}
    with pytest.raises(CheckError, match=r"step 4: .* is frozen and changed"):
        brakes.fit(braking, RegionFreeze(region, check_base=False), Moves())
    assert "step=4.ckpt" not in brakes.kept()


def test_what_another_run_has_kept_is_not_overwritten(brakes, limit):
    braking = {"limits": {"old": limit}, "action": "roll_back"}
    brakes.fit(braking)
    with pytest.raises(UserError, match="holds weights that another run has kept"):
        brakes.fit(braking)
    assert brakes.kept() == ["step=4.ckpt"]
    module, _ = brakes.fit({**braking, "overwrite": True})
    assert same(module.weights(), module.course[4])


def test_refuses_what_cannot_go_back(brakes):
    braking = {"limits": {"old": 0.1}, "action": "select"}
    region = Region.random(brakes.module().model, 0.1, seed=1)
    for more, said in (
        (WeightAverage(0.9), "the average of the weights"),
        (BaseAverage(0.5), "the average of the weights"),
        (RegionFreeze(region, check_base=False, clamp=0.0), "not frozen as it is in the base"),
        (RegionFreeze(region, check_base=False, first_step=2), "not frozen as it is in the base"),
    ):
        with pytest.raises(UserError, match=f"cannot roll back or select: .*{said}"):
            brakes.fit(braking, more)
        brakes.fit({**braking, "action": "warn"}, more, steps=3)  # needs no way back
    with pytest.raises(UserError, match="does not say when a checkpoint is written"):
        brakes.fit(braking, plugins=[AsyncCheckpointIO(TorchCheckpointIO())])
    with pytest.raises(UserError, match="the brake's action select keeps weights on the way"):
        brakes.fit({**braking, "folder": None})
    (brakes.folder / "file").touch()
    with pytest.raises(UserError, match=r"a folder that can be written to, got .*file"):
        brakes.fit({**braking, "folder": brakes.folder / "file"})
    with pytest.raises(UserError, match=r"limits 'ol'.*did you mean 'old'"):
        brakes.fit({**braking, "limits": {"ol": 0.1}})


def test_stands_after_its_tracker(brakes):
    tracker = ForgettingTracker(DOCUMENTS, "new", max_length=24)
    brake = ForgettingBrake(tracker, {"old": 0.1})
    for callbacks in ([brake], [brake, tracker]):
        trainer = L.Trainer(
            accelerator="cpu", max_steps=1, callbacks=callbacks, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        with pytest.raises(UserError, match="does not have that one before it"):
            trainer.fit(brakes.module())
