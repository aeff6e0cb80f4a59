"""What a log says of a run, without a terminal."""

import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from freezetrain.callbacks import ForgettingTracker
from freezetrain.callbacks.step_lines import StepLines
from freezetrain.evaluation import Document


class Module(L.LightningModule):
    def __init__(self, model, fails=False):
        super().__init__()
        self.model, self.fails = model, fails

    def training_step(self, batch, batch_idx):
        if self.fails and self.global_step == 3:
            raise RuntimeError("out of memory")
        loss = self.model(input_ids=torch.arange(8)[None]).logits.square().mean()
        self.log("train/loss", loss)
        self.log("train/learning_rate", 3e-4)
        self.log("train/tokens_per_second", 12345.0)
        self.log("train/memory_peak_gib", 4.06)
        self.log("train/hours_left", 0.5)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(make_model, tmp_path, fails=False):
    documents = {
        name: [Document(list(range(first, first + 8)), 8)]
        for name, first in {"zh": 0, "en": 50, "es[/b]": 90}.items()
    }
    tracker = ForgettingTracker(documents, "zh", every_n_steps=2, max_length=8)
    lines = StepLines()
    tracker.progress = lines.evaluating
    trainer = L.Trainer(
        max_steps=4, accumulate_grad_batches=2, callbacks=[lines, tracker], logger=False,
        enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=False,
        default_root_dir=tmp_path, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(
        Module(make_model(), fails), DataLoader(list(torch.randn(20, 3, 2)), batch_size=None)
    )
    return tracker


def said(capsys):
    captured = capsys.readouterr()
    assert captured.out == "", "no tables"
    lines = [line for line in captured.err.splitlines() if re.match(r"\d\d:\d\d:\d\d ", line)]
    return [line[9:] for line in lines]


def test_steps_and_evaluations_have_a_line_each(make_model, tmp_path, capsys):
    tracker = fit(make_model, tmp_path)
    lines, history = said(capsys), tracker.history
    facts = r"loss \d+\.\d{4}, learning rate 0\.0003, 12,345 tokens/s, 4\.1 GiB, 30 min left"
    assert lines[0] == "training from step 0 to 4"
    assert lines[1].startswith("evaluated at step 0, nats per byte: zh ")
    assert re.fullmatch(f"step 1 of 4, {facts}", lines[2])
    middle, last = history.evaluations[1:]
    worst, most = middle.forgetting.worst
    assert lines[3] == (
        f"evaluated at step 2: held-out languages {middle.forgetting.mean:+.4f} nats per byte in "
        f"the mean, {worst} {most:+.4f} at worst, zh {-middle.forgetting.target_gain:+.4f}"
    )
    assert re.fullmatch(f"step 4 of 4, {facts}", lines[4])
    assert lines[5].startswith(f"evaluated at step {last.step}: ")
    assert len(lines) == 6, "steps within a minute of a line have none"
    assert tracker.table, "the tracker has its tables back"


def test_each_step_has_a_line_where_steps_take_longer(make_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("freezetrain.log_lines.EVERY", 0.0)
    fit(make_model, tmp_path)
    steps = [line.split()[1] for line in said(capsys) if line.startswith("step ")]
    assert steps == ["1", "2", "3", "4"]


def test_an_exception_ends_it(make_model, tmp_path, capsys):
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(make_model, tmp_path, fails=True)
    assert said(capsys)[-1].startswith("evaluated at step 2")


def test_other_ranks_say_nothing(capsys):
    trainer = SimpleNamespace(is_global_zero=False, callbacks=[], global_step=1, max_steps=1)
    lines = StepLines()
    lines.on_train_start(trainer, None)
    lines.on_train_batch_start(trainer)
    lines.on_train_batch_end(trainer, None)
    lines.evaluating(1, 2)
    lines.on_train_end(trainer, None)
    assert said(capsys) == []
