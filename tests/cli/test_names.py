"""Every verb on folders, languages and parameters whose names are markup, HTML and formulas."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from nasty_names import MARKUP, NASTY, unseen
from parsed_page import Page
from safetensors.torch import save_file
from torch import nn
from verbs import freezetrain

from freezetrain.escaping import visible
from freezetrain.regions import Region
from freezetrain.scoring import Scores
from freezetrain.terminal import Terminal

NAME = "=[red]$^-$<i onclick=boo()>|`*_"  # as far as a file may be called so
PARAMETER = NASTY.replace(".", "").replace("\udcff", "")


class Odd(nn.Module):
    """Two parameters with names that no model has."""

    def __init__(self, value: float) -> None:
        super().__init__()
        for name in ("a[/red]", PARAMETER):
            self.register_parameter(name, nn.Parameter(torch.full((4, 4), value)))


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """No name is broken into lines."""
    monkeypatch.setattr(Terminal, "_environ", {"COLUMNS": "2000"})


def joined(text: str) -> str:
    """Without line breaks and spaces, as a terminal may break a line anywhere."""
    return re.sub(r"\s", "", text)


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    """All that was written, joined; nothing of it acts in a terminal."""
    written = "".join(capsys.readouterr())
    assert unseen(written) == []
    return joined(written)


def test_parameters_of_any_name(tmp_path, capsys):
    odd = Odd(1.0)
    Region.random(odd, 0.5, seed=0).save("region.safetensors")
    scores = {name: value.detach() for name, value in odd.named_parameters()}
    Scores(scores, None, {"method": "fisher", "language": PARAMETER}).save("scores.safetensors")
    for folder, model in (("base", odd), ("moved", Odd(2.0))):
        Path(folder).mkdir()
        save_file(dict(model.state_dict()), f"{folder}/model.safetensors")
    for status, *command in (
        (0, "info", "region.safetensors"),
        (0, "info", "scores.safetensors"),
        (1, "verify", "base", "moved", "region.safetensors"),
    ):
        assert freezetrain(*command, "--out", f"{command}"[:90].replace("/", "")) == status
        written = shown(capsys)
        assert "a[/red]" in written
        assert joined(visible(PARAMETER)) in written


def test_an_error_shows_names_and_does_nothing(capsys):
    assert freezetrain("info", f"x{MARKUP}\x1b[2J\u202e") == 2
    written = shown(capsys)
    assert "a[/red]:smile:" in written
    assert "\\x1b[2J\\u202e" in written


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_folder, udhr) -> Path:
    """A model, and texts of two languages, all of a nasty name."""
    folder = tmp_path_factory.mktemp("place") / NAME
    shutil.copytree(model_folder, folder / NAME)
    (folder / "texts").mkdir()
    for name, language in {NAME: udhr["en"], "zh": udhr["zh"]}.items():
        with (folder / "texts" / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for text in [*language.train, *language.test]:
                file.write(json.dumps({"text": text}) + "\n")
    return folder


@pytest.mark.exhaustive
def test_verbs(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    both = json.dumps([NAME, "zh"])
    model, texts = ("--model", NAME), ("--texts", "texts")
    evaluation = (
        "--evaluation.texts.folder", "texts", "--evaluation.max_length", 64,
        "--evaluation.languages", both, "--evaluation.documents", 2,
    )  # fmt: skip
    region = f"core/{NAME}.safetensors"
    training = (
        *model, *texts, "--region", region, "--languages", json.dumps([NAME]),
        "--optimization.max_steps", 1, "--optimization.sequence_length", 32,
        "--optimization.micro_batch", 1, "--optimization.batch_tokens", 32,
        "--watch.languages", both, "--watch.documents", 2, "--watch.max_length", 64,
        "--watch.texts.folder", "texts", "--workers", 1,
    )  # fmt: skip
    commands = {
        "scores": ("score", *model, *texts, "--languages", both, "--sequence_length", 32,
                   "--sequences", 4, "--workers", 1),
        "core": ("select", "--kind", "core", "--scores", "scores", "--languages", both),
        "ablated": ("ablate", *model, *evaluation, "--regions", json.dumps([region]),
                    "--prompts", json.dumps([MARKUP]), "--new_tokens", 2),
        "perturbed": ("perturb", *model, *evaluation, "--scores", "scores", "--languages", both,
                      "--count", 1, "--random", "false"),
        "overlap": ("overlap", region, "core/again.safetensors",
                    "--names", json.dumps([NAME, MARKUP])),
        "converted": ("convert", region, "--to", "paper"),
        "dry": ("train", *training, "--dry_run"),
        "trained": ("train", *training),
        "verified": ("verify", NAME, "trained/model", region),
        "extended": ("extend", *model, *texts, "--learn", 2, "--language", NAME),
        "forgetting": ("forgetting", NAME, "trained/model", "--target", NAME, *evaluation),
        "report": ("report", "trained", "forgetting", "--names", json.dumps([NAME, MARKUP])),
    }  # fmt: skip
    unnamed = {"core", "perturbed", "converted", "verified"}  # what they show has no name in it
    for out, command in commands.items():
        assert freezetrain(*command, "--out", out) == 0
        assert out in unnamed or joined(NAME) in shown(capsys)
        if out == "core":
            shutil.copy("core/region.safetensors", "core/again.safetensors")
            Path("core/region.safetensors").rename(region)
    pages = {path.parent.name: path for path in Path().glob("*/*.html")}
    assert pages.keys() == {"trained", "forgetting", "report"}
    for path in pages.values():
        source = path.read_text(encoding="utf-8")
        assert unseen(source) == []
        assert not any(name.startswith("on") for _, given in Page(source).tags for name in given)
    tables = list(Path().glob("*/*.csv"))
    assert {path.name for path in tables} == {"forgetting.csv", "overlap.csv"}
    for path in tables:
        with path.open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert f"'{NAME}" in cells
        assert not any(cell.startswith("=") for cell in cells)
    for path in Path().glob("*/*.md"):
        assert NAME not in path.read_text(encoding="utf-8")
