"""What `pip install freezetrain` brings: metadata and files, and how a version is released."""

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import freezetrain

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def workflow(name: str) -> dict:
    return yaml.safe_load((ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8"))


def test_versions_of_python_are_those_that_the_workflow_tests():
    tested = workflow("ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    said = re.findall(r"Python :: (3\.\d+)$", "\n".join(PROJECT["classifiers"]), re.MULTILINE)
    assert said == tested
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_only_the_last_job_of_a_release_may_publish():
    release = workflow("release.yml")
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 takes `on` for true
    assert release["permissions"] == {"contents": "read"}
    build, publish = release["jobs"]["build"], release["jobs"]["publish"]
    assert "permissions" not in build
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert not any("run" in step for step in publish["steps"])
    assert "twine check --strict" in "\n".join(step.get("run", "") for step in build["steps"])


@pytest.mark.parametrize(
    ("tag", "right"), [(f"v{freezetrain.__version__}", True), ("v9.9.9", False)]
)
def test_a_release_needs_the_tag_of_its_version(tmp_path, tag, right):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    steps = workflow("release.yml")["jobs"]["build"]["steps"]
    (command,) = [step["run"] for step in steps if step.get("name") == "The tag is the version"]
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / f"freezetrain-{freezetrain.__version__}.tar.gz").touch()
    done = subprocess.run([bash, "-c", command], env={"GITHUB_REF_NAME": tag}, cwd=tmp_path)
    assert (done.returncode == 0) == right


# Without the settings of whoever runs the tests.
GIT = ["git", "-c", "user.name=Tests", "-c", "user.email=tests@localhost", "-c", "gc.auto=0"]


def _version(source: Path, folder: Path) -> str:
    """What setuptools-scm makes of ``source``."""
    command = [sys.executable, "-m", "setuptools_scm", "--root", str(source)]
    config = ["--config", str(source / "pyproject.toml")]
    done = subprocess.run([*command, *config], check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


def test_the_version_is_that_of_the_installed_package():
    assert freezetrain.__version__ == metadata.version("freezetrain")


@pytest.mark.exhaustive
def test_both_distributions_hold_the_whole_package(tmp_path):
    for name in ("build", "setuptools_scm", "twine"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    if shutil.which("git") is None:
        pytest.skip("no git")
    pytest.importorskip("setuptools", "77", reason="pyproject.toml needs a newer setuptools")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "freezetrain", source / "freezetrain", ignore=ignored)
    shutil.copytree(ROOT / "tests", source / "tests", ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    files = {
        path.relative_to(source).as_posix()
        for path in (source / "freezetrain").rglob("*")
        if path.is_file()
    }
    assert _version(source, tmp_path) == "0.0.0"
    own = [*GIT, "-C", str(source)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        subprocess.run([*own, *command], check=True)
    assert _version(source, tmp_path).startswith("0.0.1.dev1+g")
    subprocess.run([*own, "tag", "v1.2.3"], check=True)
    dist = tmp_path / "dist"
    command = ["-m", "build", "--no-isolation", "--outdir", str(dist), str(source)]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    distributions = sorted(dist.iterdir())
    subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *distributions],
        check=True,
        capture_output=True,
    )
    wheel, sdist = distributions
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        said = Parser().parsestr(archive.read(metadata).decode())
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == files
    assert {"freezetrain/py.typed", "freezetrain/__init__.pyi"} <= files
    assert said["Version"] == "1.2.3"
    assert said["License-Expression"] == "MIT"
    assert said.get_all("Classifier") == PROJECT["classifiers"]
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert files | {"LICENSE", "README.md", "pyproject.toml"} <= packed
    made = {"PKG-INFO", "setup.cfg", "MANIFEST.in"}
    assert not {
        name
        for name in packed - files - made - {"LICENSE", "README.md", "pyproject.toml"}
        if name and "freezetrain" not in name
    }
