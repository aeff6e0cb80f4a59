"""Inputs that are right, shared by all cases of the sweep, and how a case is run and looked at."""

import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from bad_input import Case, Inputs, filled, link_folder
from made_runs import make_run

from freezetrain.cli import main
from freezetrain.files import write_json, write_text
from freezetrain.regions import Region, block_parameters
from freezetrain.regions.base import base_of
from freezetrain.scoring import Scores


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, model_folder, make_model, udhr) -> Inputs:
    """A base, an adapted model, texts, regions, scores, tokens and a run, all tiny and right."""
    folder = tmp_path_factory.mktemp("inputs")
    link_folder(model_folder, folder / "base")
    link_folder(model_folder, folder / "adapted")
    for name, language in udhr.items():
        put_texts(folder / "texts" / f"{name}.jsonl", [*language.train, *language.test][:12])
    model = make_model()
    for seed, name in enumerate(("region", "other")):
        Region.random(model, 0.01, seed=seed).save(folder / name)
    save_scores(model, folder / "scores")
    write_text(folder / "tokens", "xyzzy\nplugh\n")
    run = make_run().to_dict()
    write_json(folder / "run" / "forgetting.json", run["history"])
    write_text(folder / "run" / "recipe.yaml", "seed: 0\n")
    return Inputs(folder)


_REPORT = re.compile("Traceback|Error|Warning|WARN|REPORT")
"""What libraries say; our own table of the texts, made before the model is loaded, may stand."""


def put_texts(path: Path, texts: list[str]) -> None:
    write_text(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def save_scores(model, folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    parameters = block_parameters(model, norms=True)
    made = {
        "method": "taylor", "sequences": 2, "tokens": 30, "batches": 1, "loss": 5.0,
        "norms": [name for name in parameters if "norm" in name], "transposed": [],
    }  # fmt: skip
    for language in ("en", "es", "zh"):
        tensors = {name: torch.rand(p.shape) for name, p in parameters.items()}
        scores = Scores(tensors, base_of(model), {**made, "language": language})
        scores.save(folder / f"{language}.safetensors")


def content_of(folder: Path) -> dict[str, object]:
    """What lies in a folder, byte for byte."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else str(path.readlink())
        if path.is_symlink()
        else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def state_put_back(monkeypatch):
    """What a verb may change in the process is as it was, for the next case."""
    environment = dict(os.environ)
    loggers = {
        name: logging.getLogger(name).level
        for name in ("", "transformers", "datasets", "lightning", "freezetrain")
    }
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    os.environ.clear()
    os.environ.update(environment)
    for name, level in loggers.items():
        logging.getLogger(name).setLevel(level)
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)


@pytest.fixture
def refuse(inputs, tmp_path, capfd, state_put_back):
    """Run a case; assert that it was refused as bad input must be, or recorded, and return the
    sentence."""

    def run(case: Case) -> str:
        here, cwd, out = (tmp_path / name for name in ("here", "cwd", "out"))
        here.mkdir()
        cwd.mkdir()
        if case.make is not None:
            case.make(here, inputs)
        places = {**inputs.places, "here": here, "out": out}
        os.environ.update({key: filled(value, places) for key, value in case.env.items()})
        before = content_of(inputs.folder), content_of(here)
        os.chdir(cwd)
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(case.command(places))
        said = capfd.readouterr()
        assert (content_of(inputs.folder), content_of(here)) == before, "inputs changed"
        if stopped.value.code == 1 and case.command(places)[0] == "forgetting":
            # Of several models one that is none is recorded, and the others go on.
            assert not _REPORT.search(said.err), said.err
            assert "Traceback" not in said.out, said.out
            failed = json.loads((out / "results.json").read_text())["failed"]
            (sentence,) = failed.values()
            assert filled(case.says, places) in sentence, sentence
            return sentence
        lines = said.err.splitlines()
        assert (stopped.value.code, len(lines)) == (2, 1), "\n".join(lines[:-9:-1])
        assert lines[0].startswith("freezetrain: ")
        assert not _REPORT.search(said.out), said.out
        assert filled(case.says, places) in lines[0], lines[0]
        assert not os.path.lexists(out), f"left at --out: {sorted(content_of(out))}"
        assert not list(cwd.iterdir()), "left where it ran"
        return lines[0].removeprefix("freezetrain: ")

    return run
