"""Checkpoints are whole whenever a run stops, files and folders alike; see test_resumed.py too."""

import json
import os
import shutil
import zlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import nn

from freezetrain import ranks
from freezetrain.callbacks import checkpoint_files
from freezetrain.callbacks.checkpoint_files import facts
from freezetrain.callbacks.stopping import save_step
from freezetrain.errors import UserError
from freezetrain.ranks import Launch
from freezetrain.training import checkpoints
from freezetrain.training.checkpoints import StepCheckpoint, latest_checkpoint, resumable

pytestmark = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory", "ignore:.*does not have many workers"
)


class Killed(BaseException):
    """As by SIGKILL: nothing catches it but the test."""


class InFolders(CheckpointIO):
    """Writes a checkpoint as a folder of two files, as sharded engines do."""

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        Path(path, "part").mkdir(parents=True)
        torch.save(checkpoint["state_dict"], Path(path, "part", "weights.pt"))
        torch.save(checkpoint, Path(path, "rest.pt"))

    def load_checkpoint(self, path, map_location=None, weights_only=None):
        return torch.load(Path(path, "rest.pt"), weights_only=True)

    def remove_checkpoint(self, path):
        raise AssertionError("StepCheckpoint removes them itself")


class Batches:
    """Goes on where it was."""

    def __init__(self):
        self.rows = torch.randn(24, 1, 3, generator=torch.Generator().manual_seed(1))
        self.taken = 0

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        while self.taken < len(self.rows):
            self.taken += 1
            yield self.rows[self.taken - 1]

    def state_dict(self):
        return {"taken": self.taken}

    def load_state_dict(self, state):
        self.taken = state["taken"]


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch_idx)
        return self.layer(batch).square().mean()

    def train_dataloader(self):
        return Batches()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(folder, steps, plugins=(), accumulate=2, every=1):
    module = Module()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=list(plugins),
        callbacks=[StepCheckpoint(folder, every)],
    )
    trainer.fit(module, ckpt_path=latest_checkpoint(folder), weights_only=True)
    return module


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def write(folder, name, text="x", engine="fsdp2"):
    """A checkpoint that is a folder, with facts that fit it."""
    path = folder / "checkpoints" / name
    path.mkdir(parents=True)
    (path / "weights").write_text(text)
    said = {"step": 1, "world": 2, "engine": engine, "files": {"weights": len(text)}}
    (path / "freezetrain.json").write_text(json.dumps(said))
    return path


def count_down(monkeypatch, left):
    """Die at the ``left``-th call that changes what lies on disk."""

    def dies(act, before=lambda *_: None):
        def called(*args, **kwargs):
            nonlocal left
            left -= 1
            if not left:
                before(*args)
                raise Killed
            return act(*args, **kwargs)

        return called

    def half(path, *_):
        for file in [p for p in Path(path).rglob("*") if p.is_file()][:1]:
            file.unlink()

    monkeypatch.setattr(checkpoint_files.os, "replace", dies(os.replace))
    monkeypatch.setattr(checkpoint_files.os, "fsync", dies(os.fsync))
    monkeypatch.setattr(checkpoint_files.shutil, "rmtree", dies(shutil.rmtree, half))
    monkeypatch.setattr(Path, "unlink", dies(Path.unlink))


@pytest.mark.parametrize("plugins", [[], [InFolders()]], ids=["file", "folder"])
def test_death_at_any_point_leaves_a_whole_checkpoint(tmp_path, monkeypatch, plugins):
    whole = fit(tmp_path / "whole", 2, plugins).layer.weight
    points = 0
    for point in range(1, 60):
        folder = tmp_path / str(point)
        with monkeypatch.context() as patched:
            count_down(patched, point)
            try:
                fit(folder, 2, plugins)
            except Killed:
                points += 1
            else:
                break  # it has not so many
        latest = latest_checkpoint(folder)
        assert latest is not None or point < 10, "the first one was written"
        assert torch.equal(fit(folder, 2, plugins).layer.weight, whole)
        assert set(names(folder)) - {"step=1.ckpt"} == {"step=2.ckpt"}
    assert points >= 8


def test_latest_counts_steps_as_numbers(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    for step in (9, 100, 20):
        torch.save({}, tmp_path / "checkpoints" / f"step={step}.ckpt")
    assert latest_checkpoint(tmp_path).name == "step=100.ckpt"


def test_rank_0_removes_what_is_unfinished_and_others_pass_it_over(tmp_path, monkeypatch):
    write(tmp_path, "step=2.ckpt")
    left = {write(tmp_path, "step=3.ckpt.unfinished"), write(tmp_path, "step=1.ckpt.removed")}
    monkeypatch.setattr(checkpoints, "current_launch", lambda: Launch(rank=1, world=2))
    assert latest_checkpoint(tmp_path).name == "step=2.ckpt"
    assert all(path.exists() for path in left)
    monkeypatch.undo()
    assert latest_checkpoint(tmp_path).name == "step=2.ckpt"
    assert names(tmp_path) == ["step=2.ckpt"]


@pytest.mark.parametrize("harm", ["cut off", "a flipped bit"])
def test_damaged_file_is_named(tmp_path, harm):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "step=3.ckpt"
    torch.save({"weights": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    middle = len(whole) // 2  # in the weights
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes(whole[:-50] if harm == "cut off" else flipped)
    if harm != "cut off":
        assert torch.load(path, weights_only=True)["weights"].any()  # torch does not see it
    with pytest.raises(UserError, match=r"step=3.ckpt is damaged"):
        latest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: (path / "weights").write_text(""),
        lambda path: (path / "weights").unlink(),
        lambda path: (path / "freezetrain.json").unlink(),
        lambda path: (path / "freezetrain.json").write_text("{}"),
    ],
)
def test_damaged_folder_is_named(tmp_path, harm):
    path = write(tmp_path, "step=3.ckpt")
    assert latest_checkpoint(tmp_path) == path
    harm(path)
    with pytest.raises(UserError, match=r"step=3.ckpt is damaged: .*; delete it"):
        latest_checkpoint(tmp_path)


def test_folder_says_what_is_in_it(tmp_path):
    fit(tmp_path, 2, [InFolders()])
    path = latest_checkpoint(tmp_path)
    told = facts(path)
    assert (told.step, told.world, told.engine) == (2, 1, "ddp")
    assert sorted(told.files) == ["part/weights.pt", "rest.pt"]
    content = (path / "rest.pt").read_bytes()
    assert told.sums["rest.pt"] == zlib.crc32(content)
    (path / "rest.pt").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"damaged: rest.pt has changed since it was written"):
        latest_checkpoint(tmp_path)


def test_micro_batches_are_counted_anew_for_another_accumulation(tmp_path):
    fit(tmp_path, 3, accumulate=1, every=3)
    assert fit(tmp_path, 5, accumulate=4, every=1).batches == list(range(12, 20))


def test_other_engines_checkpoints_are_refused(tmp_path):
    path = write(tmp_path, "step=3.ckpt")
    assert resumable(path, 7, "fsdp2") == {}
    with pytest.raises(UserError, match="was written under fsdp2, and the run goes on under ddp"):
        resumable(path, 2, "auto")
    file = tmp_path / "step=1.ckpt"
    torch.save({}, file)
    assert resumable(file, 7, "auto") == resumable(file, 7, "ddp") == {}
    with pytest.raises(UserError, match="was written under ddp"):
        resumable(file, 2, "zero-2")


def test_other_numbers_of_ranks_go_on_under_zero_with_adamw_alone(tmp_path):
    path = write(tmp_path, "step=3.ckpt", engine="zero-2")
    assert resumable(path, 2, "zero-2", "lion") == {}
    with pytest.raises(UserError, match=r"written by 2 ranks, .* AdamW only, not of lion; go"):
        resumable(path, 3, "zero-2", "lion")


@pytest.mark.parametrize("shared", [True, False])
def test_folder_that_ranks_do_not_share_is_refused(tmp_path, shared, monkeypatch):
    """Rank 1 of two, whose rank 0 has left its file here or elsewhere."""
    if shared:
        (tmp_path / ".probe-7").touch()
    monkeypatch.setattr(checkpoint_files, "from_first_rank", lambda _: ".probe-7")
    expected = pytest.raises(UserError, match="a file system that all machines share")
    with nullcontext() if shared else expected:
        checkpoint_files.require_shared(SimpleNamespace(is_global_zero=False), tmp_path)


@pytest.fixture
def after_rank_0(monkeypatch):
    """Have a second call be that of rank 1, which learns what rank 0 has raised in the first."""
    failures = []

    def from_all_ranks(failure, group=None):
        failures.append(failure)
        return failures[:1]

    monkeypatch.setattr(ranks, "from_all_ranks", from_all_ranks)


@pytest.mark.usefixtures("after_rank_0")
def test_folder_that_cannot_be_written_is_refused_by_all_ranks(tmp_path):
    (tmp_path / "file").touch()
    for first in (True, False):
        trainer = SimpleNamespace(is_global_zero=first)
        with pytest.raises(UserError, match=r"can be written to, got .* \(Not a directory\)"):
            checkpoint_files.require_shared(trainer, tmp_path / "file" / "kept")


@pytest.mark.usefixtures("after_rank_0")
def test_no_rank_waits_for_one_that_cannot_write(tmp_path):
    """Rank 0 of two has no room; both learn of it where they would wait for each other."""
    for rank in (0, 1):

        def save(place, rank=rank):
            if rank == 0:
                raise OSError(28, "No space left on device", place)

        trainer = SimpleNamespace(local_rank=rank, is_global_zero=rank == 0)
        with pytest.raises(UserError, match=r"could not write .*step=1\.ckpt: .*No space"):
            checkpoint_files.write(trainer, tmp_path / "step=1.ckpt", save)
    assert list(tmp_path.iterdir()) == []


def test_save_does_not_write_a_step_twice(tmp_path, monkeypatch):
    class Twice(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 2:
                save_step(trainer)
                save_step(trainer)

    written, write = [], checkpoint_files.write

    def noted(trainer, path, save):
        written.append(path.name)
        write(trainer, path, save)

    monkeypatch.setattr(checkpoint_files, "write", noted)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=4,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Twice(), StepCheckpoint(tmp_path, 2)],
    )
    trainer.fit(Module())
    assert written == ["step=2.ckpt", "step=4.ckpt"]
