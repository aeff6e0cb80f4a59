"""Nothing of what a user was given runs: each input would make a file, which must not be there."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from bad_input import Case, Make, Payload, cases, hostile_pickle, in_file, link_folder, put
from safetensors.torch import load_file

PICKLES = """
train | model/model.safetensors | a pickle
verify | model/model.safetensors | a pickle
info | model/model.safetensors | a pickle
region | region | a pickle
facts | region | a pickle
scores | scores/zh.safetensors | a pickle
paper | masks/model.layers.0.mlp.up_proj.weight.pt | a pickle
report | run/forgetting.json | a pickle
recipe | r.yaml | a pickle
recipe | r.yaml | a tag of Python
texts | texts/zh.jsonl | a pickle
tokens | tokens | a pickle
"""

WAYS = in_file(
    {
        "train": "--model @here/model",
        "verify": "--base @here/model",
        "info": "--path @here/model",
        "region": "[train] --region @here/region",
        "facts": "[info] --path @here/region",
        "scores": "[select] --scores @here/scores",
        "paper": "[convert] --source @here/masks --to freezetrain",
        "report": "--runs [@here/run]",
        "recipe": "[train] --config @here/r.yaml",
        "texts": "[train] --texts @here/texts",
        "tokens": "[extend] --tokens @here/tokens",
    }
)


def assert_nothing_ran(tmp_path: Path) -> None:
    assert not list(tmp_path.rglob("RUN"))


def test_the_payload_itself_would_run(tmp_path):
    pickle.loads(hostile_pickle(tmp_path))
    with pytest.raises(AssertionError):
        assert_nothing_ran(tmp_path)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", cases((PICKLES, WAYS)))
def test_no_pickle_and_no_tag_runs(refuse, case, tmp_path):
    refuse(case)
    assert_nothing_ran(tmp_path)


def pickled_weights(save) -> Make:
    """A model whose weights are a pickle, beside which there are no others."""

    def make(here: Path, inputs) -> None:
        link_folder(inputs.base, here / "model")
        weights = load_file(here / "model/model.safetensors")
        (here / "model/model.safetensors").unlink()
        save(here, weights, here / "model/pytorch_model.bin")

    return make


PICKLED = {
    "a bare pickle": lambda here, _, path: put(path, hostile_pickle(here)),
    "torch.save of it": lambda here, _, path: torch.save(Payload(here / "RUN"), path),
    "among weights": lambda here, weights, path: torch.save(
        {**weights, "more": Payload(here / "RUN")}, path
    ),
    "in an old file": lambda here, weights, path: torch.save(
        {**weights, "more": Payload(here / "RUN")}, path, _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("save", PICKLED)
@pytest.mark.parametrize(
    ("verb", "words"),
    [("train", "--model @here/model"), ("verify", "--base @here/model"),
     ("info", "--path @here/model")],
)  # fmt: skip
def test_no_pickle_among_weights_runs(refuse, verb, words, save, tmp_path):
    refuse(Case(verb, words, "@here/model", pickled_weights(PICKLED[save])))
    assert_nothing_ran(tmp_path)


def remote_code(file: str, **entries: object) -> Make:
    """A model that names ``code.py`` beside it as its code."""

    def make(here: Path, inputs) -> None:
        link_folder(inputs.base, here / "model")
        path = here / "model" / file
        put(path, json.dumps({**json.loads(path.read_text()), **entries}))
        code = f"from pathlib import Path\nPath({str(here / 'RUN')!r}).touch()\nclass C: pass\n"
        put(here / "model/code.py", code)
        put(here / "model/model.py", code)

    return make


CODE = {
    "a configuration": remote_code(
        "config.json", model_type="own", auto_map={"AutoConfig": "code.C"}
    ),
    "a model": remote_code(
        "config.json", model_type="own",
        auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.C"},
    ),
    "a configuration elsewhere": remote_code(
        "config.json", model_type="own", auto_map={"AutoConfig": "nobody/nothing--code.C"}
    ),
    "a path": remote_code("config.json", model_type="own", auto_map={"AutoConfig": "../code.C"}),
}  # fmt: skip


@pytest.mark.timeout(30)
@pytest.mark.parametrize("code", CODE)
@pytest.mark.parametrize("verb", ["train", "info"])
def test_no_code_beside_a_model_runs(refuse, verb, code, tmp_path):
    words = {"train": "--model @here/model", "info": "--path @here/model"}[verb]
    refuse(Case(verb, words, "@here/model", CODE[code]))
    assert_nothing_ran(tmp_path)
