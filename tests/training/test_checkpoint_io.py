"""Checkpoints that are one file, against Lightning's own."""

import tracemalloc
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from freezetrain.training.checkpoint_io import FileCheckpointIO

STATE = {"state_dict": {"a": torch.arange(5.0)}, "global_step": 3, "groups": [{"lr": 0.1}]}


@pytest.mark.parametrize(
    ("writes", "reads"),
    [(FileCheckpointIO(), TorchCheckpointIO()), (TorchCheckpointIO(), FileCheckpointIO())],
)
def test_files_are_those_of_lightning(writes, reads, tmp_path):
    writes.save_checkpoint(STATE, tmp_path / "new" / "step=3.ckpt")
    loaded = reads.load_checkpoint(tmp_path / "new" / "step=3.ckpt", weights_only=True)
    torch.testing.assert_close(loaded.pop("state_dict"), STATE["state_dict"])
    assert loaded == {name: value for name, value in STATE.items() if name != "state_dict"}


def test_what_is_loaded_may_be_changed_and_outlives_the_file(tmp_path):
    path = tmp_path / "step=3.ckpt"
    FileCheckpointIO().save_checkpoint(STATE, path)
    before = path.read_bytes()
    loaded = FileCheckpointIO().load_checkpoint(path)["state_dict"]["a"]
    loaded[0] = 7
    assert path.read_bytes() == before
    path.unlink()
    assert loaded.tolist() == [7, 1, 2, 3, 4]


def test_pickles_of_objects_are_refused(tmp_path):
    torch.save({"code": print}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        FileCheckpointIO().load_checkpoint(tmp_path / "bad.ckpt", weights_only=False)


def test_a_full_disk_says_so():
    with pytest.raises(OSError, match="No space left on device"):
        FileCheckpointIO().save_checkpoint({"a": torch.zeros(1 << 16)}, "/dev/full")


@pytest.mark.parametrize("io", [FileCheckpointIO(), TorchCheckpointIO()])
def test_no_copy_is_made_in_memory(io, tmp_path):
    state = {"a": torch.zeros(1 << 22)}
    tracemalloc.start()
    try:
        io.save_checkpoint(state, tmp_path / "step=1.ckpt")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    copied = peak > 4 << 22
    assert copied == (type(io) is TorchCheckpointIO)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc of Linux")
def test_what_is_read_is_mapped(tmp_path):
    path = tmp_path / "step=1.ckpt"
    FileCheckpointIO().save_checkpoint(STATE, path)
    loaded = FileCheckpointIO().load_checkpoint(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    del loaded
