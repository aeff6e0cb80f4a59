"""The page and tables of a comparison, against the results that they were made from."""

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from made_comparison import HELD_OUT, RATES, VARIANTS, failed_run, grid, make_compare
from parsed_page import Page, number
from rich.console import Console

from freezetrain.compare.findings import findings, recommendations
from freezetrain.compare.frontier import compare_variants, stored_results
from freezetrain.compare.page import render_compare, variants_markdown
from freezetrain.compare.results import CompareResults
from freezetrain.compare.tables import csv_columns, terminal_table
from freezetrain.tables import to_csv

STUDY = Path(__file__).parents[2] / "docs" / "study" / "small_tr.json"


@pytest.fixture(scope="module")
def results() -> CompareResults:
    """All runs of one variant and seed have failed."""

    def fail(run):
        lost = (run.variant, run.seed) == ("random 5%", 1)
        empty = dict.fromkeys(("gain", "mean", "worst", "worst_language", "languages"))
        return replace(run, **empty, failed="loss became NaN at step 12") if lost else run

    return make_compare(change=fail)


@pytest.fixture(scope="module")
def source(results: CompareResults, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("compare") / "report.html"
    render_compare(results, path)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_loads_nothing_and_refers_to_what_is_there(source: str, page: Page) -> None:
    assert not re.search("https?:|@import", source)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert not any("src" in attributes for _, attributes in page.tags)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in page.tags if str(a.get("href", "")).startswith("#")}
    named = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert links | named | set(re.findall(r"url\(#([^)]+)\)", source)) <= set(ids)


def test_the_table_at_equal_gain_holds_every_figure(results: CompareResults, page: Page) -> None:
    losses_of, comparison = results.main.variants, results.comparison
    _, heads, *rows = page.table("Loss of the held-out languages where each")
    notes = page.notes_of("Loss of the held-out languages where each")[2:]
    names = [row[0] for row in rows]
    assert names[-1] == "random 5%"  # a seed failed
    losses = [losses_of[name]["mean"].loss for name in names[:-1]]
    assert losses == sorted(losses)
    assert set(names) == set(VARIANTS)
    for row, note in zip(rows, notes, strict=True):
        assert len(row) == len(heads)
        for first, measure in ((1, "mean"), (4, "worst")):
            entry = losses_of[row[0]][measure]
            assert number(row[first]) == pytest.approx(entry.loss, abs=6e-5)
            ends = [number(end) for end in note[first].split(" to ")]
            assert ends == pytest.approx(entry.interval, abs=6e-5)
            if row[0] == "plain":
                assert row[first + 1 : first + 3] == ["–", "–"]
                continue
            assert number(row[first + 1][:-1]) == pytest.approx(100 * entry.relative, abs=0.51)
            ends = [number(end) for end in note[first + 1].rstrip("%").split(" to ")]
            assert ends == pytest.approx([100 * e for e in entry.relative_interval], abs=0.51)
            assert row[first + 2].replace("\xa0", " ").lstrip("▲▼ ") == entry.verdict
        facts = results.variants[row[0]]
        assert float(row[7]) == pytest.approx(losses_of[row[0]]["mean"].learning_rate, rel=0.05)
        assert row[8] == ("–" if facts.frozen is None else "42.3%")
        assert ("scores" in row[9], "5% replay" in row[9]) == (
            facts.reads_old,
            bool(facts.trained_on_old),
        )
        time = comparison.variants[row[0]].relative_seconds
        assert float(row[10][1:]) == pytest.approx(time, abs=0.006)


def test_other_tables_hold_every_figure(results: CompareResults, page: Page) -> None:
    _, _, *rows = page.table("Mean loss at every gain")
    for row in rows:
        for place, at in enumerate(results.comparison.at):
            entry = at.variants[row[0]]["mean"]
            cell = row[1 + 3 * place]
            if entry.loss is None:
                assert cell == "–"
            else:
                assert number(cell) == pytest.approx(entry.loss, abs=6e-5)
    rows = page.table("Every run’s model")[1:]
    assert len(rows) == len(results.runs)
    for row, run in zip(rows, results.runs, strict=True):
        assert row[0] == run.variant
        assert (float(row[1]), int(row[2])) == (run.learning_rate, run.seed)
        if run.failed:
            assert row[3:7] == ["–"] * 4
        else:
            assert number(row[3]) == pytest.approx(run.gain, abs=6e-5)
            assert number(row[4]) == pytest.approx(run.mean, abs=6e-5)
            assert row[6] == "German (de)"
    rows = page.table("Runs that failed")[1:]
    assert [row[0] for row in rows] == ["random 5%"] * len(RATES)
    assert {row[3] for row in rows} == {"loss became NaN at step 12"}
    heads, *rows = page.table("Loss of each language at a gain")
    assert [re.sub(r".*\((.*)\)", r"\1", row[0]) for row in rows] == list(HELD_OUT)
    for place, name in enumerate(heads[1:], 1):
        mean = fmean(number(row[place]) for row in rows)
        assert mean == pytest.approx(results.main.variants[name]["mean"].loss, abs=1e-4)
    changes = {row[0]: row[1:] for row in page.table("What each variant changes")[1:]}
    assert changes["replay 5%"] == ["–", "replay.share: 0.05"]
    assert changes["vocabulary"][0] == "vocabulary"
    assert ["train.optimization.max_steps", "150"] in page.table("Settings")


def test_findings_stand_on_the_page(results: CompareResults, page: Page) -> None:
    assert all(line in page.text for line in findings(results) + recommendations(results))


def test_without_a_gain_in_common_the_page_says_why(tmp_path: Path) -> None:
    results = make_compare(rates=(1e-3,))
    render_compare(results, tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert findings(results)[0] in page.text
    assert not any("equal gain" in title or "a gain of" in title for title in page.tables)
    assert len(page.table("Every run’s model")) == 1 + len(results.runs)
    assert "Nothing can be compared" in variants_markdown(results)


def test_runs_as_csv(results: CompareResults) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(csv_columns(results), results.runs))))
    for row, run in zip(rows, results.runs, strict=True):
        assert (row["variant"], float(row["learning_rate"])) == (run.variant, run.learning_rate)
        if run.failed:
            assert (row["gain"], row["delta_de"], row["failed"]) == ("", "", run.failed)
        else:
            assert float(row["gain"]) == run.gain
            assert (row["worst_language"], float(row["worst"])) == ("de", run.worst)
            losses = [float(row[f"delta_{code}"]) for code in HELD_OUT]
            assert losses == list(run.languages.values())


def test_the_table_as_markdown(results: CompareResults) -> None:
    written = variants_markdown(results).splitlines()
    head, _, first = (re.split(r"(?<!\\) \| ", line.strip("| ")) for line in written[:3])
    cells = dict(zip(head, first, strict=True))
    entry = results.main.variants["everything"]["mean"]
    assert cells["variant"] == "everything"
    loss = number(cells["mean loss: nats/byte"].split(" (")[0])
    assert loss == pytest.approx(entry.loss, abs=6e-5)
    assert cells["mean loss: beyond noise"] == "▼ better"
    assert len([line for line in written if line.startswith("| ")]) == 2 + len(VARIANTS)
    odd = make_compare({"plain": VARIANTS["plain"], "a | b": VARIANTS["vocabulary"]})
    assert "| a \\| b |" in variants_markdown(odd)


def test_the_terminal_shows_the_best_first_and_the_unreached_last_in_80_columns() -> None:
    runs = grid("plain") + grid("worse", a=0.03) + grid("[red]half", a=0.01)
    runs += [*grid("strong", gains=(0.7, 0.8, 0.9)), failed_run("broken", 1e-3, 0)]
    alike = iter((-0.02, 0.01, -0.015) * 3)
    runs += grid("alike", noise=lambda: next(alike))
    table = terminal_table(replace(make_compare(), comparison=compare_variants(runs)))
    cells = table.cells()
    names = [row[0].text for row in cells]
    assert names == ["[red]half", "alike", "plain", "worse", "strong", "broken"]
    changes = [(row[2].text, row[2].style) for row in cells]
    assert changes == [
        ("−50%", "green"), ("≈ −1%", ""), ("–", ""), ("+50%", "red"), ("not reached", ""),
        ("not reached", ""),
    ]  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert len([line for line in lines if "half" in line]) == 1  # one block


def test_a_page_is_made_of_stored_results_which_the_comparison_gives_again() -> None:
    def nine_digits(text: str) -> dict:
        return json.loads(text, parse_float=lambda number: f"{float(number):.9g}")

    text = STUDY.read_text(encoding="utf-8")
    again = json.dumps(stored_results(json.loads(text)).to_dict())
    stored = nine_digits(text)
    for key in ("freezetrain", "verb", "passed"):  # of every verb's results.json
        del stored[key]
    assert nine_digits(again) == stored


@pytest.mark.filterwarnings("error")
def test_odd_names_are_escaped_and_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    odd = "<b>&\"'$x_1$"
    results = make_compare(
        {"plain": VARIANTS["plain"], odd: VARIANTS["vocabulary"]},
        change=lambda run: replace(run, machine="<b>"),
    )
    model = replace(results.model, name="</title><script>alert(1)</script>")
    results = replace(results, model=model)
    for name in ("a.html", "b.html"):
        render_compare(results, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 1  # sorts the tables
    assert "b" not in {tag for tag, _ in page.tags}
    assert odd in [row[0] for row in page.table("Loss of the held-out languages")]
