"""Runs and results that cannot be read: for the report, and of a run that is to go on."""

import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
from bad_input import COMMANDS, Case, Make, cases, filled, in_file, write

from freezetrain.cli.command_line import parse
from freezetrain.recipe import yaml12

RUN = in_file({"report": "--runs [@here/run]"})

RUNS = """
report | elsewhere | words | @here/run
report | run | words
report | run | a folder
report | run | a pipe
report | run | a device
report | run | a link to itself
report | run/forgetting.json | - | @here/run
report | run/forgetting.json | nothing
report | run/forgetting.json | half a mapping
report | run/forgetting.json | a list
report | run/forgetting.json | null
report | run/forgetting.json | no text
report | run/forgetting.json | an empty mapping
report | run/forgetting.json | deep
report | run/forgetting.json | a deep list
report | run/forgetting.json | a folder | @here/run
report | run/results.json | nothing
report | run/results.json | a list
report | run/results.json | deep
report | run/results.json | ={"runs": []}
report | run/results.json | ={"runs": [5]}
report | run/results.json | ={"runs": [{}]}
report | run/results.json | ={"runs": {"a": 5}}
report | run/results.json | ={"region": 5} | @here/run
report | run/results.json | ={"texts": [5]} | @here/run
report | run/results.json | ={"a": NaN}
report | run/recipe.yaml | a deep sequence
report | run/recipe.yaml | an anchor in itself
report | run/recipe.yaml | anchors that multiply
report | run/recipe.yaml | a tag of Python
report | run/recipe.yaml | a list
report | run/recipe.yaml | no text
"""

HISTORIES = """
report | run/forgetting.json | +target = -
report | run/forgetting.json | +target = 5
report | run/forgetting.json | +target = "xx"
report | run/forgetting.json | +evaluations = []
report | run/forgetting.json | +evaluations = null
report | run/forgetting.json | +evaluations = {}
report | run/forgetting.json | +evaluations/0 = null
report | run/forgetting.json | +evaluations/1/step = "x"
report | run/forgetting.json | +evaluations/1/step = 1.5
report | run/forgetting.json | +evaluations/1/step = @digits
report | run/forgetting.json | +evaluations/1/tokens = "x"
report | run/forgetting.json | +evaluations/1/samples = [1]
report | run/forgetting.json | +evaluations/1/figures = []
report | run/forgetting.json | +evaluations/1/figures/es = -
report | run/forgetting.json | +evaluations/1/figures/es = null
report | run/forgetting.json | +evaluations/1/figures/es/nll = "x"
report | run/forgetting.json | +evaluations/1/figures/es/nll = NaN
report | run/forgetting.json | +evaluations/1/figures/es/nll = 1e999
report | run/forgetting.json | +evaluations/1/figures/es/nll = @digits
report | run/forgetting.json | +evaluations/1/figures/es/nll = true
report | run/forgetting.json | +evaluations/1/figures/es/tokens = 0
report | run/forgetting.json | +evaluations/1/figures/es/tokens = -1
report | run/forgetting.json | +evaluations/1/figures/es/tokens = 1.5
report | run/forgetting.json | +evaluations/1/figures/es/tokens = @digits
report | run/forgetting.json | +evaluations/1/figures/es/bytes = 0
report | run/forgetting.json | +evaluations/1/figures/es/correct = "x"
report | run/forgetting.json | +evaluations/1/forgetting = null
report | run/forgetting.json | +evaluations/1/forgetting/mean = "x"
report | run/forgetting.json | +evaluations/1/forgetting/mean = null
report | run/forgetting.json | +evaluations/1/forgetting/worst = "x"
report | run/forgetting.json | +evaluations/1/forgetting/worst/language = "xx"
report | run/forgetting.json | +evaluations/1/forgetting/languages = {}
report | run/forgetting.json | +evaluations/1/forgetting/languages/es = {}
report | run/forgetting.json | +evaluations/1/forgetting/languages/es/interval = "x"
report | run/forgetting.json | +evaluations/1/forgetting/languages/es/interval = ["a", "b"]
report | run/forgetting.json | +evaluations/1/forgetting/mean_interval = [1, 2, 3]
report | run/forgetting.json | +evaluations/1/forgetting/target_gain = "x"
"""

ON = {"compare": "--regions '{a: {kind: random}}' --variants '{plain: {}, b: {region: a}}'"}
"""More options of runs that go on."""


def going_on(verb: str, file: str, content: str) -> Case:
    """A row ``verb | damaged file of a run that was stopped | content``."""
    more = ON.get(verb, "")

    def make(here: Path, inputs) -> None:
        words = [filled(word, inputs.places) for word in shlex.split(f"{COMMANDS[verb]} {more}")]
        recipe = yaml12.dump(asdict(parse([verb, *words]).recipe))
        (here / "went").mkdir()
        (here / "went/recipe.yaml").write_text(recipe, encoding="utf-8")
        damaged: Make = write(f"went/{file}", content)
        damaged(here, inputs)

    return Case(verb, f"{more} --out @here/went", Path(file).name, make)


GOING_ON = """
score | zh.safetensors | nothing
score | zh.safetensors | words
score | zh.safetensors | a pickle
train | checkpoints/step=1.ckpt | words
train | checkpoints/step=1.ckpt | a pickle
compare | base.json | nothing
compare | base.json | a list
compare | base.json | deep
"""


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", cases((RUNS, RUN), (HISTORIES, RUN), (GOING_ON, going_on)))
def test_runs_and_results_that_cannot_be_read_are_refused(refuse, case):
    refuse(case)
