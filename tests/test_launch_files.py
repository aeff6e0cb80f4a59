"""What docker/, .github/ and docs/launching.md copy, call and name is there."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from freezetrain.cli.command_line import parse
from freezetrain.cli.verbs import VERBS
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.training.recipe import TrainRecipe

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
SLURM = (ROOT / "docker" / "freezetrain.slurm").read_text()
LAUNCHING = (ROOT / "docs" / "launching.md").read_text()


def test_dockerfile_copies_what_is_there():
    copied = re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE)
    sources = [word for line in copied for word in line.split()[:-1]]
    assert {"pyproject.toml", "freezetrain", "recipes", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
    assert re.search(r"^USER \d+$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^FROM \S+:\d\S+$", DOCKERFILE, re.MULTILINE)


def test_compose_builds_that_file_and_runs_a_recipe():
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    train = compose["services"]["train"]
    build = train["build"]
    assert (ROOT / "docker" / build["context"] / build["dockerfile"]).resolve() == (
        ROOT / "docker" / "Dockerfile"
    )
    words = [re.sub(r"\$\{\w+:-(.*)\}", r"\1", word) for word in train["command"]]
    inside = re.search(r"^WORKDIR (\S+)$", DOCKERFILE, re.MULTILINE)
    assert inside is not None
    words = [word.replace(inside[1], str(ROOT)) for word in words]
    assert parse(words).verb == "train"


def test_slurm_script_runs_a_recipe_and_goes_back_into_the_queue():
    recipe, out = re.findall(r"^\w+=\$\{\d:-(.+)\}$", SLURM, re.MULTILINE)
    line = re.search(r"^srun .*?(freezetrain .+)$", SLURM, re.MULTILINE)
    assert line is not None
    words = shlex.split(line[1].replace("$recipe", str(ROOT / recipe)).replace("$out", out))
    assert parse(words[1:]).out == Path(out)
    assert "--ntasks-per-node" in SLURM  # else srun's ranks are refused
    assert re.search(r"--signal=USR1@\d+", SLURM)


@pytest.mark.parametrize(("status", "requeued"), [(0, False), (2, False), (75, True)])
def test_slurm_script_on_each_status(tmp_path, status, requeued):
    """With stand-ins for SLURM's two commands."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    for name, body in (("srun", f"exit {status}"), ("scontrol", 'echo "$@" > requeued')):
        (tmp_path / name).write_text(f"#!{bash}\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [bash, str(ROOT / "docker" / "freezetrain.slurm"), "r.yaml", "out"],
        env={"PATH": str(tmp_path), "SLURM_JOB_ID": "7"},
        cwd=tmp_path,
    )
    assert done.returncode == status
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_workflow_runs_what_is_there():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
    commands = re.findall(r"freezetrain (train recipes/\S+\.yaml.*)", "\n".join(steps))
    assert commands
    for command in commands:
        words = shlex.split(command)
        words[1] = str(ROOT / words[1])
        recipe = parse(words).recipe
        assert recipe.optimization.accumulate(recipe.engine.devices) >= 1
    for path in re.findall(r"[\w./]*(?:docker|\.ci)/[\w.]+", "\n".join(steps)):
        assert (ROOT / path).is_file(), path


def test_launching_names_verbs_fields_and_files_that_are_there():
    for verb in re.findall(r"freezetrain (\w+) -?", LAUNCHING):
        assert verb in VERBS
    for field in TrainRecipe(
        ModelSource("base"), optimization=Optimization(batch_tokens=4096)
    ).changeable:
        assert f"`{field}`" in LAUNCHING
    for path in re.findall(r"docker/[\w.]+", LAUNCHING):
        assert (ROOT / path).is_file(), path
    for link in re.findall(r"\]\(([\w./]+)\)", LAUNCHING):
        assert (ROOT / "docs" / link).is_file(), link
