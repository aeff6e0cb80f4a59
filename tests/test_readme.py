"""The README and the pages in docs/: their commands, examples, links and names are right."""

import json
import re
import shlex
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from freezetrain.cli.command_line import parse
from freezetrain.cli.verbs import VERBS
from freezetrain.compare.recipe import CompareRecipe
from freezetrain.recipe import yaml12
from freezetrain.recipe.mapping import build
from freezetrain.training.recipe import Lora, TrainRecipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
TEXTS = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    ]
}


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXTS[page], re.DOTALL)


def test_readme_is_short():
    assert len(README.encode()) <= 12 * 1024


def test_ci_runs_the_very_test_command():
    command = "pip install -c constraints.txt -e '.[test]' && python -m pytest"
    assert f"    {command}\n" in README
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()
    assert f" {command}\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_constraints_pin_what_pyproject_requires():
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    constraints = (ROOT / "constraints.txt").read_text()
    pinned = {normal(n) for n in re.findall(r"^([\w.-]+)==", constraints, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    requirements = [
        *project["dependencies"],
        *(line for name in extras if name not in ("wandb", "mlflow") for line in extras[name]),
    ]
    names = {normal(re.match(r"[\w.-]+", requirement).group()) for requirement in requirements}
    names -= {"freezetrain"}  # the test extra names other extras of this package
    assert {"torch", "deepspeed", "accelerate"} <= names
    assert names <= pinned


def test_table_names_every_verb():
    _header, *rows = re.findall(r"^\| `(\w+)", README, re.MULTILINE)
    assert rows == list(VERBS)


def test_recipe_examples_are_valid():
    (train,) = map(yaml12.load, blocks("yaml"))
    assert build(TrainRecipe, train, "README").optimization.learning_rate == 5e-5
    (compare,) = map(yaml12.load, blocks("yaml", "docs/comparing.md"))
    pilot = build(CompareRecipe, compare, "docs/comparing.md")
    assert pilot.training("LoRA", 1e-3, 0).lora == Lora(rank=16)


def _commands(text: str) -> list[str]:
    """``freezetrain ...`` of the indented code blocks, without comments."""
    lines = re.findall(r"^    (\S.*)$", text.replace("\\\n", " "), re.MULTILINE)
    parts = [part.partition(" #")[0].strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("freezetrain ")]


COMMANDS = list(dict.fromkeys(command for text in TEXTS.values() for command in _commands(text)))


def test_commands_parse(tmp_path):
    (tmp_path / "recipe.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    for folder in ("recipes", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    assert len(COMMANDS) > 15
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        assert parse(words).verb == words[0], command


class Toy(L.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, _):
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


def test_python_examples_run(model):
    batches = list(torch.randint(0, 400, (4, 2, 8)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    before = model.lm_head.weight.detach().clone()

    def train(model, optimizer):
        for batch in batches:
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    zeros = []

    def evaluate(model):
        zeros.append(int((model.lm_head.weight == 0).sum()))

    names = {
        "model": model, "optimizer": optimizer, "train": train, "evaluate": evaluate,
        "L": L, "module": Toy(model), "batches": DataLoader(batches, batch_size=None),
    }  # fmt: skip
    first, *rest = [*blocks("python"), *blocks("python", "docs/finding_regions.md")]
    exec(first, names)  # the examples are this repository's own
    frozen = names["region"].masks()["lm_head.weight"]
    assert torch.equal(model.lm_head.weight[frozen], before[frozen])
    assert not torch.equal(model.lm_head.weight, before)
    names["handle"].remove()
    for example in rest:
        exec(example, names)
    assert torch.equal(model.lm_head.weight[frozen], before[frozen])
    assert zeros == [int(frozen.sum())]
    assert names["both"].count > names["region"].count


@pytest.mark.exhaustive
@pytest.mark.parametrize("page", ["docs/study.md", "docs/paper.md"])
def test_pages_are_made_from_their_figures(page, tmp_path, monkeypatch):
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (example,) = blocks("python", page)
    exec(example, {})
    pages = sorted(tmp_path.glob("*.html"))
    expected = [
        "keep_tr",
        "keep_zh",
        "large_zh",
        "real_tr",
        "small_tr",
        "small_zh",
        "small_zh_seeds",
    ]
    assert [path.stem for path in pages] == (expected if "study" in page else ["paper"])
    for path in pages:
        text = path.read_text(encoding="utf-8")
        assert "<svg" in text
        figures = ROOT / ("docs/study" if "study" in page else "docs/paper")
        name = f"{path.stem}.json" if "study" in page else "results.json"
        results = json.loads((figures / name).read_text(encoding="utf-8"))
        assert Path(results["model"]["name"]).name in text


def _anchors(text: str) -> set[str]:
    """As GitHub makes them of headings; a repeated one gets -1, -2, ..."""
    anchors: list[str] = []
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        anchors.append(re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-"))
    repeated = {f"{anchor}-{n}" for anchor in anchors for n in range(1, anchors.count(anchor))}
    return {*anchors, *repeated}


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if anchor:
            anchors = _anchors(target.read_text(encoding="utf-8"))
            assert anchor in anchors, f"{page}: {link}"


def _exists(name: str) -> bool:
    """Whether ``freezetrain.a.b`` is a module, or a name in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            place = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            if not hasattr(place, part):
                return False
            place = getattr(place, part)
        return True
    return False


def test_changelog_names_where_things_are_now():
    rows = re.findall(r"^\| `freezetrain.*\| (.*) \|$", CHANGELOG, re.MULTILINE)
    assert rows
    for now in rows:
        for name in re.findall(r"`(freezetrain[\w.]+)`", now):
            assert _exists(name), name


@pytest.mark.parametrize("page", TEXTS)
def test_named_files_and_modules_exist(page):
    text = TEXTS[page]
    folders = "benchmarks|docker|docs|freezetrain|recipes|tests"
    for path in re.findall(rf"(?<![\w/.])(?:{folders})/[\w/.-]*\w", text):
        assert (ROOT / path).exists(), f"{page}: {path}"
    for name in re.findall(r"(?<![\w/.])freezetrain(?:\.\w+)+", text):
        if not name.endswith((".slurm", ".json")):
            assert _exists(name), f"{page}: {name}"


def test_no_file_names_a_path_of_one_machine():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in tracked:
        if name.endswith((".py", ".md", ".yaml", ".yml", ".toml", ".txt")):
            path = ROOT / name
            assert not path.exists() or str(ROOT) not in path.read_text(encoding="utf-8"), name
