import errno
import fcntl
import os
import shutil
from dataclasses import dataclass, field

import pytest

from freezetrain.errors import CheckError, UserError
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.run_folder import claimed
from freezetrain.training.recipe import TrainRecipe


@dataclass
class Recipe:
    steps: int = 1
    words: list[str] = field(default_factory=lambda: ["no"])


def test_bad_input_leaves_no_trace(tmp_path):
    with pytest.raises(UserError, match="bad"), claimed(tmp_path / "a" / "b", Recipe()):
        raise UserError("bad")
    assert not (tmp_path / "a" / "b").exists()


def test_what_a_failed_job_left_is_kept(tmp_path):
    def job(folder, error):
        with claimed(folder, Recipe()):
            (folder / "score.txt").write_text("hours of work")
            raise error

    for error in (UserError("bad"), CheckError("no")):
        folder = tmp_path / str(error)
        with pytest.raises(type(error), match=str(error)):
            job(folder, error)
        assert sorted(path.name for path in folder.iterdir()) == ["recipe.yaml", "score.txt"]


def test_resumable_takes_the_same_recipe_only(tmp_path):
    with claimed(tmp_path / "out", Recipe(), resumable=True):
        pass
    with claimed(tmp_path / "out", Recipe(), resumable=True):
        pass
    with (
        pytest.raises(UserError, match="another run, with another steps, words"),
        claimed(tmp_path / "out", Recipe(2, ["yes"]), resumable=True),
    ):
        pass
    with pytest.raises(UserError, match="not empty"), claimed(tmp_path / "out", Recipe()):
        pass


def test_a_start_that_was_killed_while_it_wrote_the_recipe_is_started_again(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt), claimed(tmp_path, Recipe(), resumable=True):
            pass
    assert any(tmp_path.iterdir())
    with claimed(tmp_path, Recipe(), resumable=True):
        assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_the_micro_batch_may_change_where_it_is_not_the_optimizer_step(tmp_path):
    def start(folder, micro_batch, batch_tokens):
        settings = Optimization(micro_batch=micro_batch, batch_tokens=batch_tokens)
        recipe = TrainRecipe(ModelSource("base"), optimization=settings)
        with claimed(tmp_path / folder, recipe, resumable=True):
            pass

    start("told", 4, 4096)
    start("told", 2, 4096)
    start("follows", 4, None)
    with pytest.raises(UserError, match=r"with another optimization\.micro_batch"):
        start("follows", 2, None)
    start("follows", 4, None)


def test_a_folder_in_use_is_refused(tmp_path):
    with (
        claimed(tmp_path / "out", Recipe(), resumable=True),
        pytest.raises(UserError, match="another process is at work"),
        claimed(tmp_path / "out", Recipe(), resumable=True),
    ):
        pass
    assert (tmp_path / "out" / "recipe.yaml").exists()
    with claimed(tmp_path / "out", Recipe(), resumable=True):
        pass


def test_a_lock_is_one_that_nfs_gives(tmp_path, monkeypatch):
    def nfs(file, operation):  # as fcntl(2) locks, which NFS makes of flock(2)
        if not file.writable():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", nfs)
    with claimed(tmp_path / "out", Recipe(), resumable=True):
        pass


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def lustre(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", lustre)
    with (
        pytest.raises(UserError, match=r"cannot lock .*Function not implemented; give --out"),
        claimed(tmp_path / "out", Recipe(), resumable=True),
    ):
        pass


def test_a_damaged_recipe_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is damaged"), claimed(tmp_path, Recipe(), resumable=True):
        pass
