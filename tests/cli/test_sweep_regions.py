"""Region and score files that are not what they seem, the paper's layout, and expressions."""

from pathlib import Path

import pytest
import torch
from bad_input import Case, Make, bare, cases, in_file, link_folder, write
from safetensors import safe_open
from safetensors.torch import save_file

from freezetrain.regions import Region

REGION = in_file(
    {
        "train": "--region @here/region",
        "verify": "--region @here/region",
        "info": "--path @here/region",
        "overlap": "--regions [@region,@here/region]",
        "ablate": "--regions [@here/region]",
        "convert": "--source @here/region --to paper",
        "select": "--kind random --like @here/region",
        "compare": "--regions '{a: {kind: file, path: @here/region}}' "
        "--variants '{plain: {}, b: {region: a}}'",
    }
)

REGIONS = """
info | elsewhere | words | @here/region
overlap | elsewhere | words | @here/region
convert | elsewhere | words | @here/region
select | elsewhere | words | @here/region
info | region | nothing
verify | region | words
info | region | a header of 2^63
convert | region | a header of words
select | region | a deep header
overlap | region | metadata of a number
verify | region | another tensor
info | region | a huge shape
info | region/region.safetensors.index.json | deep
verify | region | +format = "freezetrain-region/2"
info | region | +format = 5
convert | region | +parameters = {"a": 5}
info | region | +base = {"name": [1], "revision": null, "fingerprint": "x"}
verify | region | +made = 5
overlap | region | +digest = -
info | region | +made = NaN
info | region | +parameters/@up/shape = [-24, 16]
verify | region | +parameters/@up/shape = "24"
overlap | region | +parameters/@up/shape = [24.0, 16]
convert | region | +parameters/@up/shape = -
info | region | +parameters/@up/kind = "all"
select | region | +parameters/@up/kind = "bits"
"""

SCORE = in_file(
    {
        "select": "[select] --scores @here/scores",
        "monolingual": "[select] --kind monolingual --language zh --scores @here/scores",
        "expression": "[select] --expression zh --scores @here/scores",
        "perturb": "--scores @here/scores",
        "ablate": "--scores @here/scores --ratios [0.01]",
        "penalty": "[train] --penalty.strength 1 --penalty.fisher @here/scores",
        "info": "--path @here/scores/zh.safetensors",
        "compare": "--scores @here/scores --regions '{a: {}}' "
        "--variants '{plain: {}, b: {region: a}}'",
    }
)

SCORES = """
select | elsewhere | words | @here/scores
select | scores | words | @here/scores
monolingual | scores/zh.safetensors | - | 'zh'
select | scores/zh.safetensors | nothing
select | scores/zh.safetensors | a deep header
expression | scores/zh.safetensors | a pipe
select | scores/zh.safetensors | +base = 5
select | scores/zh.safetensors | +made/batches = 0
select | scores/zh.safetensors | +made/batches = - | batches
monolingual | scores/zh.safetensors | +made/method = "boom"
info | scores/zh.safetensors | +made/language = ["x"]
info | scores/zh.safetensors | +made = 5
"""

EXPRESSIONS = """
select | --scores @scores --expression '' | got ''
select | --scores @scores --expression 'zh -' | zh -
select | --scores @scores --expression zho | did you mean 'zh'
select | --scores @scores --expression 'zh + en' | zh + en
select | --scores @scores --expression '(zh' | (zh
select | --scores @scores --expression 'zh[0]' | [
select | --scores @scores --expression zh.__class__ | zh.__class__
select | --scores @scores --expression '__import__("os").system("touch RUN")' | __import__
select | --scores @scores --expression 'lambda: zh' | lambda
select | --scores @scores --expression @deep | [[[[[[[[[[
select | --scores @scores --expression @escape | expression
select | --scores @scores --expression 'zh - nothing' | nothing
select | --expression a --regions @here | @here
select | --expression a --regions @here/no | @here/no
overlap | --regions [@texts] | @texts
overlap | --regions [@region,@region] | @region
"""


MORE_REGIONS = """
overlap | region | +format = "freezetrain-scores/1"
train | region | +digest = "x"
train | region | a pipe
train | region | +parameters = []
compare | elsewhere | words | @here/region
ablate | region | +base = {"name": null, "revision": null, "fingerprint": "x"} | another model
train | region | a folder
ablate | region | +base = 5
train | region/region.safetensors.index.json | a list
train | region | +parameters/@up/shape = [4611686018427387904, 4611686018427387904]
train | region | +parameters/@up/shape = [24, 17]
ablate | region | a pointer of LFS
ablate | region | +parameters/@up/kind = null
ablate | elsewhere | words | @here/region
train | region | nothing
train | region | no tensors
train | region | a huge header
train | elsewhere | words | @here/region
ablate | region | a dangling link
overlap | region | an empty mapping
info | region | a device
train | region | +parameters/@up/kind = "boom"
verify | elsewhere | words | @here/region
select | region | +parameters = {}
overlap | region/region.safetensors.index.json | an empty mapping
"""

MORE_SCORES = """
ablate | scores/zh.safetensors | +made = null
penalty | scores/zh.safetensors | +made/language = "zh" | fisher
ablate | scores/zh.safetensors | +made/method = 5
perturb | scores/zh.safetensors | +made/batches = "x"
perturb | scores/zh.safetensors | words
perturb | scores/zh.safetensors | +parameters = ["a"]
ablate | scores/zh.safetensors | no tensors
ablate | elsewhere | words | @here/scores
perturb | elsewhere | words | @here/scores
perturb | scores/zh.safetensors | +base/fingerprint = "0" | base
penalty | elsewhere | words | @here/scores
compare | elsewhere | words | @here/scores
select | scores/zh.safetensors | +parameters = 5
select | scores/zh.safetensors | +made/transposed = [[1]]
select | scores/zh.safetensors | +made/norms = 5
select | scores/zh.safetensors | +made/method = "fisher" | 'fisher'
select | scores/zh.safetensors | +made/batches = Infinity
select | scores/zh.safetensors | +format = "freezetrain-region/1"
select | scores/zh.safetensors | +base/fingerprint = "0" | base
"""


def with_tensor(file: str, change) -> Make:
    """The file with ``change`` of the tensor of one parameter."""

    def make(here: Path, inputs) -> None:
        if (folder := Path(file).parts[0]) != file:
            link_folder(inputs.folder / folder, here / folder)
            (here / file).unlink()
        with safe_open(inputs.folder / file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata()
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = change(tensors[name])
        save_file(tensors, here / file, metadata)

    return make


INDICES = {
    "of 64 bits": lambda indices: indices.long(),
    "of floats": lambda indices: indices.float(),
    "unsorted": lambda indices: indices.flip(0),
    "repeated": lambda indices: torch.full_like(indices, 3),
    "negative": lambda indices: indices - 1000,
    "beyond the end": lambda indices: indices + 1000,
    "in two dimensions": lambda indices: indices[None].contiguous(),
}

VALUES = {
    "NaN": lambda values: torch.full_like(values, torch.nan),
    "infinity": lambda values: torch.full_like(values, torch.inf),
    "whole numbers": lambda values: values.int(),
    "fewer rows": lambda values: values[:3].contiguous(),
}

UP = "model.layers.0.mlp.up_proj.weight"

PT = {  # what is in a file of the paper's layout
    "a list": lambda: [1],
    "a state dict": lambda: {"a": torch.zeros(1)},
    "whole numbers": lambda: torch.zeros(24, 16, dtype=torch.int32),
    "complex numbers": lambda: torch.zeros(24, 16, dtype=torch.complex64),
    "a sparse layout": lambda: torch.eye(4).bool().to_sparse(),
    "no data": lambda: torch.zeros(4, device="meta"),
    "one element that stands for 10^11": lambda: torch.zeros(1).bool().expand(10**11),
    "one number that stands for 10^11": lambda: torch.zeros(1).expand(10**11),
    "a row that stands for 10^9": lambda: torch.zeros(100).bool().expand(10**9, 100),
    "NaN": lambda: torch.full((24, 16), torch.nan),
}


def paper_file(content: str, name: str = f"{UP}.pt") -> Make:
    def make(here: Path, inputs) -> None:
        (here / "masks").mkdir()
        torch.save(PT[content](), here / "masks" / name)

    return make


PAPER = in_file({"convert": "--source @here/masks --to freezetrain"})

PAPER_FILES = f"""
convert | elsewhere | words | @here/masks
convert | masks | words
convert | masks/{UP}.pt | nothing
convert | masks/{UP}.pt | words
convert | masks/{UP}.pt | an empty zip
convert | masks/{UP}.pt | a pointer of LFS
convert | masks/{UP}.pt | a pipe
convert | masks/{UP}.pt | a link to itself
convert | masks/{UP}.pt | a folder
convert | masks/a..b.pt | words | a..b
"""


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "case",
    cases(
        (REGIONS, REGION),
        (SCORES, SCORE),
        (EXPRESSIONS, bare),
        (PAPER_FILES, PAPER),
    )
    + cases((MORE_REGIONS, REGION), (MORE_SCORES, SCORE), exhaustive=True),
)
def test_regions_and_scores_that_are_none_are_refused(refuse, case):
    refuse(case)


def test_a_shard_of_a_name_too_long_is_refused(refuse):
    index = '={"metadata": {"freezetrain": {}}, "weight_map": {"a": "@long"}}'
    make = write("region/region.safetensors.index.json", index)
    refuse(Case("train", "--region @here/region", "n" * 10, make))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("content", INDICES)
def test_a_region_with_other_indices_is_refused(refuse, content):
    make = with_tensor("region", INDICES[content])
    refuse(Case("info", "--path @here/region", "@here/region, @up", make))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("content", VALUES)
def test_scores_with_other_values_are_refused(refuse, content):
    make = with_tensor("scores/zh.safetensors", VALUES[content])
    says = UP if content == "fewer rows" else "in @here/scores/zh.safetensors"
    refuse(Case("select", "--scores @here/scores", says, make, bare=True))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("content", PT)
def test_a_tensor_file_of_something_else_is_refused(refuse, content):
    words = "--source @here/masks --to freezetrain"
    refuse(Case("convert", words, UP, paper_file(content), bare=True))


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", "--region @here/wide"),
        ("verify", "--region @here/wide"),
        ("ablate", "--regions [@here/wide]"),
        ("overlap", "--regions [@region,@here/wide]"),
    ],
)
def test_a_region_of_another_architecture_is_refused(refuse, verb, words, make_model):
    def make(here: Path, inputs) -> None:
        Region.random(make_model(hidden_size=32), 0.1, seed=0).save(here / "wide")

    refuse(Case(verb, words, "shape", make))
