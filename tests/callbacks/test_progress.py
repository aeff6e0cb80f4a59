import io
import re

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import freezetrain.callbacks.progress as progress
from freezetrain.callbacks import ForgettingTracker
from freezetrain.evaluation import Document
from freezetrain.terminal import Terminal


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
            self.print("from the module [rank 0] [/tmp]")
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, monkeypatch, module):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Terminal", lambda **_: Terminal(file=screen, force_terminal=True, width=100)
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
    assert "from the module [rank 0] [/tmp]" in screen.getvalue(), "brackets are no markup"
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


class Watched(Module):
    """A language model's interface, so that it can be evaluated."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, batch_idx):
        return self.model(input_ids=torch.arange(8)[None]).logits.square().mean()

    def on_train_start(self):
        self.trainer.progress_bar_callback._bar.refresh()  # rather than wait for its clock

    def on_train_batch_end(self, *_):
        self.trainer.progress_bar_callback._bar.refresh()


def watched(tmp_path, monkeypatch, make_model, screen, *, table=True):
    monkeypatch.setattr(progress, "Terminal", lambda **_: screen)
    documents = {
        name: [Document(list(range(first, first + 8)), 8)]
        for name, first in {"zh": 0, "en": 50, "es[/b]": 90, "de": 130}.items()
    }
    tracker = ForgettingTracker(documents, "zh", every_n_steps=2, max_length=8, table=table)
    trainer = L.Trainer(
        max_steps=4, callbacks=[progress.StepProgress(), tracker], logger=False,
        enable_checkpointing=False, enable_model_summary=False, default_root_dir=tmp_path,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Watched(make_model()), DataLoader(list(torch.randn(9, 3, 2)), batch_size=None))
    return tracker


def screens(text: str) -> list[str]:
    """What stands on the terminal after each time that the live region is drawn anew."""
    drawn = re.split(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", text)
    return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in drawn]


def test_in_a_terminal_the_latest_table_stands_above_the_bar(
    tmp_path, monkeypatch, make_model, capsys
):
    out = io.StringIO()
    screen = Terminal(file=out, force_terminal=True, width=100, height=40)
    tracker = watched(tmp_path, monkeypatch, make_model, screen)
    assert capsys.readouterr().out == "", "it is printed nowhere else"
    live = [part for part in screens(out.getvalue()) if "train" in part]
    tables = [re.findall(r"Forgetting at step (\d+)", part) for part in live]
    assert all(len(steps) <= 1 for steps in tables), "one at a time"
    seen = [int(steps[0]) for steps in tables if steps]
    assert seen == sorted(seen)
    assert set(seen) == {0, 2, 4}
    for part, steps in zip(live, tables, strict=True):
        if steps:
            assert part.index("mean of 3 held out") < part.index("train"), "above the bar"
    assert tracker.table, "the tracker has it back"


def test_elsewhere_each_table_is_printed(tmp_path, monkeypatch, make_model):
    out = io.StringIO()
    watched(tmp_path, monkeypatch, make_model, Terminal(file=out, force_terminal=False, width=100))
    assert re.findall(r"Forgetting at step (\d+)", out.getvalue()) == ["0", "2", "4"]
    assert "es[/b]" in out.getvalue(), "what looks like markup is a name"


def test_a_low_terminal_keeps_its_bar(tmp_path, monkeypatch, make_model):
    out = io.StringIO()
    screen = Terminal(file=out, force_terminal=True, width=100, height=13)
    watched(tmp_path, monkeypatch, make_model, screen)
    with_table = [part for part in screens(out.getvalue()) if "Forgetting at step" in part]
    assert with_table
    for part in with_table:
        assert "train" in part
        assert "2 less forgotten languages are not shown" in part
        assert len(part.strip().splitlines()) <= 13


def test_a_table_that_nobody_wants_is_not_shown(tmp_path, monkeypatch, make_model):
    out = io.StringIO()
    screen = Terminal(file=out, force_terminal=True, width=100, height=40)
    tracker = watched(tmp_path, monkeypatch, make_model, screen, table=False)
    assert "Forgetting" not in out.getvalue()
    assert not tracker.table
