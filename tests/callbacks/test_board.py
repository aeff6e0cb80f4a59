"""What TensorBoard is given, read back from its files."""

import io
import re

import lightning as L
import numpy as np
import pytest
from forgetful import DOCUMENTS, EVERY, Module, learn_what_is_held_out
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2

from freezetrain.callbacks import ForgettingBoard, ForgettingBrake, ForgettingTracker
from freezetrain.errors import UserError

ODD = "o+\n[d]d$"  # a name is no pattern, and its line break is shown


class Fitted:
    """A fit with a board, and its event files read back."""

    def __init__(self, model, folder, *, target="new", limits=None, action="stop", steps=6):
        documents = dict(DOCUMENTS)
        documents[ODD] = documents.pop("odd")
        self.tracker = ForgettingTracker(
            documents, target, every_n_steps=EVERY, max_length=24, table=False
        )
        callbacks: list = [self.tracker]
        self.brake = None
        if limits is not None:
            self.brake = ForgettingBrake(self.tracker, limits, action, folder / "kept")
            callbacks.append(self.brake)
        settings = {"rate": 0.004, "deep": {"layers": 2, "name": "ti\nny\x1b"}, "nothing": None}
        callbacks.append(ForgettingBoard(self.tracker, self.brake, settings))
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            callbacks=callbacks,
            logger=[TensorBoardLogger(folder, name="", version=""), CSVLogger(folder, "csv")],
            log_every_n_steps=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Module(model))
        self.events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()

    def plugin(self, name: str, tag: str) -> bytes:
        return self.events.summary_metadata[tag].plugin_data.content

    def final(self) -> dict[str, list]:
        return {
            tag: [(event.step, event.value) for event in self.events.Scalars(tag)]
            for tag in self.events.Tags()["scalars"]
            if tag.startswith("final/")
        }


@pytest.fixture(scope="module")
def fitted(make_model, tmp_path_factory) -> Fitted:
    return Fitted(make_model(), tmp_path_factory.mktemp("board"))


def layout(fitted: Fitted) -> dict[str, list[str]]:
    (event,) = fitted.events.Tensors("custom_scalars__config__")
    read = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in read.category] == ["forgetting"]
    return {chart.title: list(chart.multiline.tag) for chart in read.category[0].chart}


def test_all_languages_are_in_one_chart_of_what_is_logged(fitted):
    charts = layout(fitted)
    tags = fitted.events.Tags()["scalars"]
    drawn = {
        title: sorted(tag for tag in tags if any(re.search(pattern, tag) for pattern in patterns))
        for title, patterns in charts.items()
    }
    assert drawn == {
        "loss of each held-out language, nats per byte": [
            "forgetting/o+\\n[d]d$/delta_nll_per_byte",
            "forgetting/old/delta_nll_per_byte",
        ],
        "mean and worst loss, nats per byte": ["forgetting/mean", "forgetting/worst"],
        "gain of new, nats per byte": ["forgetting/target_gain"],
    }


def test_the_plane_is_drawn_after_each_evaluation(fitted):
    images = fitted.events.Images("forgetting/plane")
    assert [image.step for image in images] == [2, 4, 6]
    pictures = [
        np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"))
        for image in images
    ]
    assert all(min(picture.shape[:2]) > 200 for picture in pictures)
    assert all((picture[0, 0] == 255).all() for picture in pictures), "on a light ground"
    colours = [len(np.unique(picture.reshape(-1, 3), axis=0)) for picture in pictures]
    assert min(colours) > 300, "edges are blended with the ground"
    assert (pictures[0] != pictures[-1]).any()


def hparams(fitted: Fitted) -> tuple[dict, list[str]]:
    tags = fitted.events.summary_metadata
    start = plugin_data_pb2.HParamsPluginData.FromString(
        tags["_hparams_/session_start_info"].plugin_data.content
    ).session_start_info.hparams
    experiment = plugin_data_pb2.HParamsPluginData.FromString(
        tags["_hparams_/experiment"].plugin_data.content
    ).experiment
    kinds = ("number_value", "string_value", "bool_value")
    values = {
        name: next(getattr(value, kind) for kind in kinds if value.HasField(kind))
        for name, value in start.items()
    }
    return values, sorted(info.name.tag for info in experiment.metric_infos)


def test_settings_stand_beside_the_final_figures(fitted):
    values, metrics = hparams(fitted)
    assert values == {
        "rate": 0.004,
        "deep/layers": 2,
        "deep/name": "ti\\nny\\x1b",
        "nothing": "None",
    }
    assert metrics == ["final/mean", "final/target_gain", "final/worst"]
    forgetting = fitted.tracker.history.last.forgetting
    assert fitted.final() == {
        "final/mean": [(6, pytest.approx(forgetting.mean, rel=1e-6))],
        "final/worst": [(6, pytest.approx(forgetting.worst[1], rel=1e-6))],
        "final/target_gain": [(6, pytest.approx(forgetting.target_gain, rel=1e-6))],
    }


def test_final_figures_are_of_the_model_that_the_brake_leaves(make_model, tmp_path):
    knows = make_model()
    learn_what_is_held_out(knows)
    fitted = Fitted(knows, tmp_path, limits={"mean": 1e-9}, action="select")
    model = fitted.brake.model
    assert (model.step, fitted.tracker.history.last.step) == (0, 6)
    assert fitted.final()["final/mean"] == [(model.step, pytest.approx(model.forgetting.mean))]
    values, _ = hparams(fitted)
    assert values["rate"] == 0.004


def test_without_a_target_there_is_no_plane(make_model, tmp_path):
    fitted = Fitted(make_model(), tmp_path, target=None, steps=2)
    assert fitted.events.Tags()["images"] == []
    assert len(layout(fitted)) == 2
    assert hparams(fitted)[1] == ["final/mean", "final/worst"]


def test_stands_after_what_it_draws(make_model):
    tracker = ForgettingTracker(DOCUMENTS, "new", max_length=24)
    brake = ForgettingBrake(tracker, {"old": 0.1})
    board = ForgettingBoard(tracker, brake)
    for callbacks, name in (
        ([board, tracker, brake], "ForgettingTracker"),
        ([tracker, board, brake], "ForgettingBrake"),
    ):
        trainer = L.Trainer(
            accelerator="cpu", max_steps=1, callbacks=callbacks, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        with pytest.raises(UserError, match=f"looks at what {name} has just found"):
            trainer.fit(Module(make_model()))
