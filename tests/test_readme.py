"""What the README says is so: its commands, its tree, its examples."""

import re
import subprocess
import tomllib
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from freezetrain.cli.verbs import VERBS, parse
from freezetrain.compare.recipe import CompareRecipe
from freezetrain.recipe import yaml12
from freezetrain.recipe.changes import built
from freezetrain.training.recipe import Lora, TrainRecipe

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_very_test_command():
    command = "pip install -c constraints.txt -e '.[test]' && python -m pytest"
    assert f"    {command}\n" in README
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()
    assert f" {command}\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()


def test_constraints_pin_what_pyproject_asks_for():
    def normal(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    constraints = (ROOT / "constraints.txt").read_text()
    pinned = {normal(n) for n in re.findall(r"^([\w.-]+)==", constraints, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras["test"], *extras["deepspeed"]]
    names = {normal(re.match(r"[\w.-]+", requirement).group()) for requirement in asked}
    names -= {"freezetrain"}  # whose test extra takes the other
    assert {"torch", "deepspeed", "accelerate"} <= names
    assert names <= pinned


def test_tree_has_one_line_for_each_file():
    (tree,) = blocks("text")
    listed = []
    folders: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        name = line.split()[0]
        folders = [*folders[:depth], name]
        if not name.endswith("/"):
            listed.append("".join(folders))
            assert len(line.split()) > 2, f"{name} has no word of explanation"
    files = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "freezetrain").rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert sorted(listed) == sorted(files)


def test_table_names_every_verb():
    _header, *rows = re.findall(r"^\| `(\w+)", README, re.MULTILINE)
    assert rows == list(VERBS)


def test_recipe_example_is_valid():
    example, pilot = map(yaml12.load, blocks("yaml"))
    assert example.keys() <= TrainRecipe.__dataclass_fields__.keys()
    assert example["optimization"]["learning_rate"] == 5e-5
    compared = built(CompareRecipe, pilot, "README")
    assert compared.training("LoRA", 1e-3, 0).lora == Lora(rank=16)


@pytest.mark.parametrize(
    "recipe",
    [
        path
        for path in sorted((ROOT / "recipes").glob("*.yaml"))
        if f"freezetrain train recipes/{path.name}" in path.read_text()  # others: test_recipes.py
    ],
    ids=lambda path: path.name,
)
def test_recipes_parse(recipe):
    parsed = parse(["train", str(recipe)]).recipe
    assert isinstance(parsed, TrainRecipe)
    told = yaml.safe_load(recipe.read_text())["optimization"]
    assert {name: getattr(parsed.optimization, name) for name in told} == told


class Toy(L.LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, batch, _):
        return self.model(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)


def test_python_examples_run(model, capsys):
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
    first, *rest = blocks("python")
    exec(first, names)  # the README is ours
    frozen = names["region"].masks()["lm_head.weight"]
    assert torch.equal(model.lm_head.weight[frozen], before[frozen])
    assert not torch.equal(model.lm_head.weight, before)
    names["handle"].remove()
    for example in rest:
        exec(example, names)
    assert torch.equal(model.lm_head.weight[frozen], before[frozen])
    assert zeros == [int(frozen.sum())]
    assert names["both"].count > names["region"].count


def test_no_file_names_a_path_of_one_machine():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    for name in tracked:
        if name.endswith((".py", ".md", ".yaml", ".yml", ".toml", ".txt")):
            assert str(ROOT) not in (ROOT / name).read_text(encoding="utf-8"), name
