"""Pages of runs, variants, languages, prompts and models with nasty names."""

from pathlib import Path

from made_comparison import VARIANTS, make_compare
from made_paper import make_paper
from made_quickstart import make_quickstart
from made_runs import CODES, REGION, benchmarks, braked, generation, make_run, texts
from nasty_names import NASTY

from freezetrain.compare.page import render_compare
from freezetrain.compare.results import CompareResults
from freezetrain.paper.claims import paper_claims
from freezetrain.paper.page import render_paper
from freezetrain.quickstart.page import render_quickstart
from freezetrain.report.runs_page import render_runs

LANGUAGES = [NASTY, *CODES[:4], "zh"]


def runs(path: Path) -> None:
    region = {"entries": 5, "made": {NASTY: NASTY}, "coverage": {NASTY: {"0": 0.5}}}
    options = {
        "languages": LANGUAGES, "settings": {NASTY: NASTY, "a": [NASTY]},
        "texts": texts(LANGUAGES), "benchmarks": benchmarks(NASTY), "target": "zh",
        "generation": generation(LANGUAGES, NASTY),
        "region": REGION.__class__(**{**vars(REGION), **region, "elsewhere": {NASTY: 0.1},
                                      "file": NASTY, "base": NASTY}),
    }  # fmt: skip
    render_runs([braked(NASTY, **options), make_run(f"{NASTY}2", LANGUAGES, target=NASTY)], path)


def quickstart(path: Path) -> None:
    results = make_quickstart(LANGUAGES, target=NASTY)
    results.settings[NASTY] = NASTY
    for name in ("name", "folder"):
        object.__setattr__(results.model, name, NASTY)
    object.__setattr__(results.region, "file", NASTY)
    render_quickstart(results, path)


def paper(path: Path) -> None:
    results = make_paper(LANGUAGES, ratios=(0.01, 0.05))
    results.settings[NASTY] = NASTY
    for name in ("name", "folder"):
        object.__setattr__(results.model, name, NASTY)
    assert results.ablation is not None
    for continued in results.ablation.texts:
        object.__setattr__(continued, "prompt", NASTY)
        continued.texts.update(dict.fromkeys(continued.texts, NASTY))
    results.claims = paper_claims(results)
    render_paper(results, path)


def comparison() -> CompareResults:
    return make_compare({"plain": VARIANTS["plain"], NASTY: VARIANTS["plain"]})


def compare(path: Path) -> None:
    render_compare(comparison(), path)
