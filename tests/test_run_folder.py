import errno
import fcntl
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

from freezetrain.errors import CheckError, UserError
from freezetrain.measuring.recipe import ForgettingRecipe
from freezetrain.recipe import yaml12
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.run_folder import Outcome, claimed, finished, is_done, write_outcome
from freezetrain.training.recipe import TrainRecipe


@dataclass
class Recipe:
    changeable: ClassVar = ("engine.devices",)
    grows: ClassVar = ("seeds",)

    steps: int = 1
    words: list[str] = field(default_factory=lambda: ["no"])
    engine: dict[str, int] = field(default_factory=lambda: {"devices": 1, "stage": 2})
    seeds: list[int] = field(default_factory=lambda: [0])


def start(folder, recipe=None, resumable=True):
    with claimed(folder, recipe or Recipe(), resumable):
        pass


def test_bad_input_leaves_no_trace(tmp_path):
    with pytest.raises(UserError, match="bad"), claimed(tmp_path / "a" / "b", Recipe()):
        raise UserError("bad")
    assert not (tmp_path / "a" / "b").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, CheckError, ZeroDivisionError])
def test_a_job_that_ends_before_it_left_anything_leaves_no_trace(tmp_path, error, monkeypatch):
    with pytest.raises(error), claimed(tmp_path / "a" / "b", Recipe()):
        raise error
    assert not list(tmp_path.iterdir())

    def written_and_stopped(path):
        raise KeyboardInterrupt

    monkeypatch.setattr("freezetrain.files.sync", written_and_stopped)
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path / "a" / "b", Recipe()):
        pass
    assert not list(tmp_path.iterdir())


def test_what_a_failed_job_left_is_kept(tmp_path):
    def job(folder, error):
        with claimed(folder, Recipe()):
            (folder / "score.txt").write_text("hours of work")
            raise error

    for error in (UserError("bad"), CheckError("no")):
        folder = tmp_path / str(error)
        with pytest.raises(type(error), match=str(error)):
            job(folder, error)
        assert sorted(os.listdir(folder)) == ["recipe.yaml", "score.txt"]


def test_a_run_is_resumed_by_the_same_recipe_but_for_what_its_type_lets_change(tmp_path):
    folder = tmp_path / "out"
    start(folder)
    written = (folder / "recipe.yaml").read_text()
    start(folder)
    start(folder, Recipe(engine={"devices": 8, "stage": 2}))
    assert (folder / "recipe.yaml").read_text() == written
    with pytest.raises(UserError, match="another run, with another steps, words; give"):
        start(folder, Recipe(2, ["yes"]))
    with pytest.raises(UserError, match=r"with another engine\.stage"):
        start(folder, Recipe(engine={"devices": 8, "stage": 3}))
    with pytest.raises(UserError, match="not empty"):
        start(folder, resumable=False)
    (folder / "recipe.yaml").unlink()
    (folder / "notes.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        start(folder)
    with pytest.raises(UserError, match=r"notes.txt is a file"):
        start(folder / "notes.txt")


def test_a_run_of_a_version_that_lacked_fields_goes_on_with_their_defaults(tmp_path):
    settings = {"max_steps": 1}
    recipe = TrainRecipe(ModelSource("m"), optimization=Optimization(**settings))
    start(tmp_path / "out", recipe)
    path = tmp_path / "out" / "recipe.yaml"
    stored = yaml12.load(path.read_text())
    for name in ("optimizer", "optimizer_args", "layer_decay"):
        del stored["optimization"][name]
    del stored["freeze"]
    path.write_text(yaml12.dump(stored))
    start(tmp_path / "out", recipe)
    other = Optimization(**settings, optimizer="lion", optimizer_args={"a": 1}, layer_decay=0.5)
    names = r"with another optimization\.layer_decay, optimization\.optimizer, .*optimizer_args\.a;"
    with pytest.raises(UserError, match=names):
        start(tmp_path / "out", TrainRecipe(ModelSource("m"), optimization=other))


def test_a_recipe_that_grows_takes_the_place_of_the_earlier_one(tmp_path):
    seen = []

    def run(recipe, error=None):
        with claimed(tmp_path / "out", recipe, resumable=True):
            seen.append(files())
            if error is not None:
                raise error
        write_outcome(tmp_path / "out", "compare", Outcome({"seeds": recipe.seeds}))

    def files():
        return {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}

    run(Recipe())
    before = files()
    run(Recipe())
    assert seen[-1] == before
    with pytest.raises(UserError, match="bad"):
        run(Recipe(seeds=[0, 1]), UserError("bad"))
    assert list(seen[-1]) == ["recipe.yaml"], "results are to be made anew"
    assert files() == before
    run(Recipe(seeds=[0, 1]))
    assert files().keys() == before.keys()
    assert all(files()[name] != content for name, content in before.items())


def test_a_run_of_which_a_check_failed_is_not_finished(tmp_path):
    for passed in (False, True):
        write_outcome(tmp_path, "forgetting", Outcome({}, passed=passed))
        assert finished(tmp_path, "forgetting") is passed


def test_a_rank_does_not_claim_and_knows_whether_there_is_something_to_do(tmp_path, monkeypatch):
    """Also while rank 0 claims the folder: it never takes for done what is to be done."""
    folder, grown = tmp_path / "out", Recipe(seeds=[0, 1])

    def done(recipe):
        return is_done(folder, "compare", recipe)

    assert not done(Recipe())
    start(folder)
    assert not done(Recipe())
    write_outcome(folder, "compare", Outcome({}, passed=False))
    assert not done(Recipe())  # rank 0 tries again what failed
    write_outcome(folder, "compare", Outcome({}))
    assert done(Recipe())
    assert not done(grown)
    seen, remove = [], Path.unlink

    def watched(path, **more):
        remove(path, **more)
        seen.append((path.name, done(grown)))

    monkeypatch.setattr(Path, "unlink", watched)
    with claimed(folder, grown, resumable=True):
        assert seen == [("results.json", False)]
        assert not done(grown)
        write_outcome(folder, "compare", Outcome({}))
    assert done(grown)


def test_results_that_are_outdated_are_made_anew(tmp_path):
    """Which is asked of all that the folder collected, also where a command names a part of it."""
    folder, asked, answer = tmp_path / "out", [], False

    def outdated(recipe, where):
        asked.append(([model.path for model in recipe.models], where))
        return answer

    def given(*names):
        return ForgettingRecipe(ModelSource("base"), [ModelSource(name) for name in names])

    def run(recipe, error=None):
        with claimed(folder, recipe, True, outdated):
            left = sorted(os.listdir(folder))
            if error is not None:
                raise error
        write_outcome(folder, "forgetting", Outcome({}))
        return left

    run(given("a"))
    run(given("b"))
    assert is_done(folder, "forgetting", given("b"), outdated)
    assert run(given("b")) == ["recipe.yaml", "results.json"]
    answer = True
    assert not is_done(folder, "forgetting", given("b"), outdated)
    assert asked[-1] == (["a", "b"], folder)
    with pytest.raises(UserError, match="bad"):
        run(given("a"), UserError("bad"))
    assert sorted(os.listdir(folder)) == ["recipe.yaml", "results.json"]
    assert run(given("a")) == ["recipe.yaml"]
    assert all(names == ["a", "b"] for names, _ in asked[2:])


def test_a_start_that_was_killed_while_it_wrote_the_recipe_is_started_again(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path)
    assert any(tmp_path.iterdir())
    start(tmp_path)
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def test_the_micro_batch_may_change_where_it_is_not_the_optimizer_step(tmp_path):
    def train(folder, micro_batch, batch_tokens):
        settings = Optimization(micro_batch=micro_batch, batch_tokens=batch_tokens)
        start(tmp_path / folder, TrainRecipe(ModelSource("base"), optimization=settings))

    train("given", 4, 4096)
    train("given", 2, 4096)
    train("follows", 4, None)
    with pytest.raises(UserError, match=r"with another optimization\.micro_batch"):
        train("follows", 2, None)
    train("follows", 4, None)


def test_a_folder_in_use_is_refused(tmp_path):
    for recipe in (Recipe(), Recipe(seeds=[0, 1])):
        with (
            claimed(tmp_path / "out", recipe, resumable=True),
            pytest.raises(UserError, match="another process is at work"),
        ):
            start(tmp_path / "out", recipe)
        assert (tmp_path / "out" / "recipe.yaml").exists()


def test_a_lock_is_one_that_nfs_gives(tmp_path, monkeypatch):
    def nfs(file, operation):  # as fcntl(2) locks, which NFS makes of flock(2)
        if not file.writable():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    monkeypatch.setattr(fcntl, "flock", nfs)
    start(tmp_path / "out")


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def lustre(file, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", lustre)
    with pytest.raises(UserError, match=r"cannot lock .*Function not implemented; give --out"):
        start(tmp_path / "out")


def test_a_damaged_recipe_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is damaged"):
        start(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"verb": "score"}', '{"passed": true}'])
def test_a_run_is_finished_by_its_own_results_alone(tmp_path, content):
    assert not finished(tmp_path, "train")
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"results.json.*delete it"):
        finished(tmp_path, "train")
    (tmp_path / "results.json").write_text('{"verb": "train"}')
    assert finished(tmp_path, "train")
