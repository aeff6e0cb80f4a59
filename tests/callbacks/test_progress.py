import io

import lightning as L
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

import freezetrain.callbacks.progress as progress


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        self.log("train/loss", loss, prog_bar=True)
        bar = self.trainer.progress_bar_callback._bar
        self.seen.append((bar.tasks[0].completed, bar.tasks[0].total))
        if batch_idx == 3:
            self.print("from the module")
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, monkeypatch, module):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=100)
    )
    bar = progress.StepProgress()
    trainer = L.Trainer(
        max_steps=4, accumulate_grad_batches=2, callbacks=[bar], logger=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
        accelerator="cpu",
    )  # fmt: skip
    batches = DataLoader(list(torch.randn(20, 3, 2)), batch_size=None)
    return bar, screen, trainer, batches


def test_counts_optimizer_steps_not_micro_batches(tmp_path, monkeypatch):
    module = Module()
    bar, screen, trainer, batches = fit(tmp_path, monkeypatch, module)
    trainer.fit(module, batches)
    assert module.seen == [(step, 4) for step in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert "4/4" in screen.getvalue()
    assert "from the module" in screen.getvalue()
    assert bar._bar is None


def test_an_exception_gives_the_terminal_back(tmp_path, monkeypatch):
    class Broken(Module):
        def on_train_batch_end(self, *_):
            raise RuntimeError("broken")

    module = Broken()
    bar, _, trainer, batches = fit(tmp_path, monkeypatch, module)
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(module, batches)
    assert bar._bar is None


def test_evaluations_are_shown(tmp_path, monkeypatch):
    class Evaluates(Module):
        def on_train_start(self):
            self.trainer.progress_bar_callback.evaluating(1, 4)
            self.note = self.trainer.progress_bar_callback._bar.tasks[0].fields["note"]

    module = Evaluates()
    _, _, trainer, batches = fit(tmp_path, monkeypatch, module)
    trainer.fit(module, batches)
    assert module.note == "evaluating 25%"


def test_shows_the_loss_and_what_throughput_logs(tmp_path, monkeypatch):
    notes = []

    class Speed(Module):
        def on_train_batch_end(self, *_):
            # Logged here as Throughput does, it is shown from the next batch on.
            self.log("train/tokens_per_second", 12345.6, prog_bar=True)

        def on_train_batch_start(self, *_):
            notes.append(self.trainer.progress_bar_callback._bar.tasks[0].fields["note"])

    module = Speed()
    _, _, trainer, batches = fit(tmp_path, monkeypatch, module)
    trainer.fit(module, batches)
    assert notes[0] == ""
    assert notes[-1].startswith("loss ")
    assert notes[-1].endswith(", 12,346 tokens/s")


def test_only_the_first_rank_draws(tmp_path, monkeypatch):
    class Quiet(Module):
        def training_step(self, batch, batch_idx):
            assert self.trainer.progress_bar_callback._bar is None
            return self.layer(batch).square().mean()

    module = Quiet()
    bar, screen, trainer, batches = fit(tmp_path, monkeypatch, module)
    monkeypatch.setattr(type(trainer.strategy), "is_global_zero", False)
    trainer.fit(module, batches)
    assert screen.getvalue() == ""
    assert not bar.is_enabled
