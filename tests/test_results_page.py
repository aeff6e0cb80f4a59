"""docs/results.md names every key of the files that freezetrain writes, with its type."""

import csv
import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from freezetrain.cli import main
from freezetrain.paper.results import PaperResults
from freezetrain.typed_json import from_json, to_json

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^##+ ([^\n]+)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
PLAIN = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None),
    "any": object,
}  # fmt: skip


def documented(section: str) -> dict[str, tuple[str, bool]]:
    """Key -> its type as written, and whether it may be missing."""
    keys = {}
    for names, kind in re.findall(r"^\| (`.+?`) \| (.+?) \|", SECTIONS[section], re.MULTILINE):
        optional = kind.endswith(", optional")
        for name in re.findall(r"`(.+?)`", names):
            keys[name] = kind.removesuffix(", optional"), optional
    assert keys, section
    return keys


def check(value, kind: str, place: str) -> None:
    """AssertionError unless ``value`` is of the type that the page gives."""
    if value is None and kind.endswith(" or null"):
        return
    for prefix, container in (("map of ", dict), ("list of ", list)):
        # "map of X or null": the values may be null too
        if kind.startswith(prefix):
            assert isinstance(value, container), f"{place}: {value!r} is no {container.__name__}"
            for key, item in value.items() if container is dict else enumerate(value):
                check(item, kind.removeprefix(prefix), f"{place}.{key}")
            return
    kind = kind.removesuffix(" or null")
    if link := re.fullmatch(r"\[(.+)\]\(#.+\)", kind):
        check_keys(value, link[1], place)
    else:
        right = isinstance(value, PLAIN[kind])
        right &= kind in ("boolean", "any") or not isinstance(value, bool)
        assert right, f"{place}: {value!r} is no {kind}"


def check_keys(value, section: str, place: str = "") -> None:
    place = place or section
    keys = documented(section)
    assert isinstance(value, dict), f"{place}: {value!r}"
    assert not value.keys() - keys.keys(), f"{place} has keys that docs/results.md lacks"
    needed = {name for name, (_, optional) in keys.items() if not optional}
    assert not needed - value.keys(), f"{place} lacks keys of docs/results.md"
    for name, item in value.items():
        check(item, keys[name][0], f"{place}.{name}")


def check_results(results: dict) -> None:
    """A whole results.json."""
    shared = documented("Every results file")
    check_keys({name: results[name] for name in shared}, "Every results file")
    own = {name: item for name, item in results.items() if name not in shared}
    check_keys(own, results["verb"])


def run(*words, out: str) -> dict:
    """The results of a verb, checked against the page."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, words), "--out", out])
    assert stopped.value.code == 0
    results = json.loads(Path(out, "results.json").read_text(encoding="utf-8"))
    if "regions" not in results or results["verb"] != "select":
        check_results(results)
    return results


def columns(path: str) -> list[str]:
    with open(path, encoding="utf-8", newline="") as file:
        return next(csv.reader(file))


def header(path: str) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["freezetrain"])


@pytest.fixture
def evaluation(text_folder) -> list[str]:
    return [
        f"--evaluation.texts.folder={text_folder}", "--evaluation.max_length=32",
        "--evaluation.documents=2",
    ]  # fmt: skip


def score(model_folder, text_folder) -> None:
    settings = ["--sequences", "4", "--sequence_length", "16", "--workers", "1"]
    run("score", "--model", model_folder, "--texts", text_folder, *settings, out="scores")


def test_cheap_verbs(model_folder, text_folder, evaluation):
    score(model_folder, text_folder)
    check_keys(header("scores/en.safetensors"), "Score header")
    run("select", "--scores", "scores", "--ratio", "0.05", out="core")
    region = "core/region.safetensors"
    check_keys(header(region), "Region header")
    for name, path in (("region", region), ("scores", "scores/en.safetensors")):
        run("info", path, out=f"info-{name}")
    run("info", model_folder, out="info-model")
    few = ["--languages", "[zh]", "--k", "3", "--sequences", "4", "--sequence_length", "16"]
    run("rehearse", "--model", model_folder, *few, out="rehearsal")
    run("verify", model_folder, model_folder, region, out="verify")
    Path("adapted").symlink_to(model_folder)
    prompts = ["--generation.documents", "1", "--generation.prompt_tokens", "4"]
    asked = [*evaluation, *prompts]
    run("forgetting", model_folder, "adapted", "--target", "zh", *asked, out="forgetting")
    for table in ("forgetting", "generation"):
        for name in columns(f"forgetting/{table}.csv"):
            assert f"`{name}`" in SECTIONS["forgetting"], name


@pytest.mark.parametrize(
    "name", ["keep_tr", "keep_zh", "large_zh", "small_tr", "small_zh", "small_zh_seeds"]
)
def test_figures_of_the_study(name):
    check_results(
        json.loads((ROOT / "docs" / "study" / f"{name}.json").read_text(encoding="utf-8"))
    )


def test_figures_of_the_paper():
    """And the types that its page takes have the same keys."""
    results = json.loads((ROOT / "docs" / "paper" / "results.json").read_text(encoding="utf-8"))
    check_results(results)
    for name in documented("Every results file"):
        del results[name]
    assert to_json(from_json(PaperResults, results)) == results


RECIPE = """
model: {{path: {model}}}
texts: {{folder: {texts}}}
languages: [zh]
region: core/region.safetensors
optimization: {{max_steps: 2, sequence_length: 16, micro_batch: 2, warmup_steps: 1}}
engine: {{devices: 1}}
watch: {{texts: {{folder: {texts}}}, every_n_steps: 1, max_length: 32, documents: 2}}
brake: {{limits: {{mean: 5.0}}, action: {action}}}
workers: 1
"""


@pytest.mark.exhaustive
def test_other_verbs(model_folder, text_folder, evaluation, tmp_path):
    score(model_folder, text_folder)
    run("select", "--scores", "scores", "--ratio", "0.05", out="core")
    kinds = ["--kind", "monolingual", "--ratio", "0.05"]
    regions = run("select", "--scores", "scores", *kinds, out="monolingual")["regions"]
    for region in regions.values():
        check_keys(region, "select")
    run("overlap", "monolingual", out="overlap")
    assert columns("overlap/overlap.csv") == ["a", "b", "jaccard", "expected"]
    run("convert", "core/region.safetensors", "--to", "paper", out="converted")
    model = ["--model", model_folder]
    ratios = ["--ratios", "[0.05]", "--random_seeds", "[0]", "--prompts", "[law]"]
    run("ablate", *model, "--scores", "scores", *ratios, *evaluation, out="ablated")
    dimensions = ["--count", "1", "--dimensions", "[1]"]
    run("perturb", *model, "--scores", "scores", *dimensions, *evaluation, out="perturbed")
    texts = ["--texts", text_folder, "--language", "zh"]
    run("extend", *model, *texts, "--learn", "5", out="extended")
    recipe = RECIPE.format(model=model_folder, texts=text_folder, action="select")
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    run("train", "recipe.yaml", "--pull.strength", "20", out="run")
    check_keys(json.loads(Path("run/forgetting.json").read_text()), "History")
    run("train", "recipe.yaml", "--optimization.ema_decay", "0.5", "--brake", "null", out="ema")
    drawn = ["--sequences", "8", "--sequence_length", "16", "--k", "3"]
    run("rehearse", *model, *drawn, out="drawn")
    rehearsing = ["--rehearse.folder", "drawn", "--rehearse.share", "0.5"]
    rehearsed = run("train", "recipe.yaml", *rehearsing, out="rehearsed")["rehearsal"]
    assert rehearsed["history"]
    run("report", "run", "ema", "rehearsed", out="report")
    few = ["--steps", "1", "--seeds", "1", "--score_languages", "[en]"]
    run("quickstart", *model, "--texts", text_folder, *few, out="quickstart")
