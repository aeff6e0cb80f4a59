"""Rows of languages, as CSV and as Markdown, against sums by hand."""

import csv
import io
import math
import statistics
from dataclasses import asdict, replace

import numpy as np
import pytest
from made_runs import braked, make_run

from freezetrain.evaluation import Document, DocumentSums, History, forgetting_table
from freezetrain.evaluation.hits import Flips, Hits
from freezetrain.report.comparison import (
    LanguageRow,
    forgetting_csv,
    forgetting_markdown,
    language_rows,
    languages_table,
    summary_table,
)
from freezetrain.report.run import Run

ROLES = {"zh": "zh (target)", "en": "en", "es": "es"}

RUNS = [make_run("plain"), make_run("core | frozen", factor=0.5)]


def row(rows: list[LanguageRow], model: str, language: str) -> LanguageRow:
    (found,) = (row for row in rows if (row.model, row.language) == (model, language))
    return found


def test_rows_follow_from_the_sums() -> None:
    rows = language_rows(RUNS)
    assert len(rows) == 2 * (4 + 1)
    for run in RUNS:
        first, last = run.history.base.figures, run.history.last.figures
        deltas, relative = [], []
        for code in ("en", "es", "de", "zh"):
            found = row(rows, run.name, code)
            before, after = (figures[code].nll / figures[code].bytes for figures in (first, last))
            assert found.base_nll_per_byte == pytest.approx(before)
            assert found.nll_per_byte == pytest.approx(after)
            assert found.delta_nll_per_byte == pytest.approx(after - before)
            assert found.relative == pytest.approx(after / before - 1)
            ratio = math.exp((last[code].nll - first[code].nll) / first[code].tokens)
            assert found.perplexity_ratio == pytest.approx(ratio)
            assert found.perplexity == pytest.approx(ratio * found.base_perplexity)
            low, high = found.interval
            assert high - low == pytest.approx(0.008)
            assert low < found.delta_nll_per_byte < high
            assert found.step == 60
            if code != "zh":
                deltas.append(after - before)
                relative.append(after / before - 1)
        mean = row(rows, run.name, "mean")
        assert mean.delta_nll_per_byte == pytest.approx(statistics.fmean(deltas))
        assert mean.relative == pytest.approx(statistics.fmean(relative))
        assert (mean.role, mean.perplexity) == ("mean", None)


def test_beyond_noise_is_an_interval_that_leaves_0_out() -> None:
    rows = language_rows([RUNS[0], make_run("unsure", noise=None)])
    found = {code: row(rows, "plain", code).beyond_noise for code in ("en", "es", "de", "zh")}
    assert found == {"en": "improved", "es": "no", "de": "forgotten", "zh": "improved"}
    assert row(rows, "unsure", "de").beyond_noise is None


def test_the_model_is_that_of_the_step_the_brake_went_back_to() -> None:
    run = braked(after=20)
    found = row(language_rows([run]), "plain", "de")
    assert found.step == 20
    assert found.bits_per_byte == run.evaluations[2].figures["de"].bits_per_byte


def test_a_subsample_is_compared_with_the_base_on_the_same_documents() -> None:
    """Base figures of a run's last rows, taken from a real history, against its documents."""

    def documents(nll: list[float]) -> DocumentSums:
        count = np.array([20, 30, 40, 50][: len(nll)])
        return DocumentSums(np.array(nll, dtype=float), count, 3 * count, count // 2)

    base = {"en": documents([40, 66, 92, 100]), "zh": documents([50, 81, 104, 150])}
    some = {"en": documents([41, 70]), "zh": documents([45, 70])}
    history = History("zh")
    history.add(0, base)
    history.add(5, some, chosen={"en": [0, 1], "zh": [0, 1]})
    rows = language_rows([Run("a", history)])
    for code, nll in (("en", 106.0), ("zh", 131.0)):
        found = row(rows, "a", code)
        assert found.base_nll_per_byte == pytest.approx(nll / 150)
        assert found.base_perplexity == pytest.approx(math.exp(nll / 50))
        assert found.base_accuracy is None
    assert row(rows, "a", "en").delta_nll_per_byte == pytest.approx(5 / 150)


def test_a_target_of_other_tokens_has_no_ratio() -> None:
    run = make_run()
    assert row(language_rows([run]), "plain", "zh").perplexity_ratio is not None
    figures = run.history.last.figures
    figures["zh"] = replace(figures["zh"], tokens=2001)
    assert row(language_rows([run]), "plain", "zh").perplexity_ratio is None


@pytest.mark.parametrize("same", [(), ("en",), ("zh",)])
def test_a_target_of_as_many_tokens_that_are_others_has_no_ratio(same) -> None:
    """Of two tokenizers that make documents of one length; ``same``: languages of the same ids."""
    rng = np.random.default_rng(0)
    made = {name: [Document(list(rng.integers(9, size=8)), 30) for _ in range(4)] for name in ROLES}
    others = {
        name: [Document([9 - number for number in one.ids], one.bytes) for one in documents]
        for name, documents in made.items()
    }

    def sums(documents: list[Document], nll: float) -> DocumentSums:
        counts = np.array([document.tokens for document in documents])
        hits = Hits.of(documents, np.ones(counts.sum(), bool))
        return DocumentSums(nll * counts, counts, np.full(4, 30), counts, hits)

    history = History("zh")
    history.add(0, {name: sums(made[name], 2.0) for name in ROLES})
    after = {name: (made if name in same else others)[name] for name in ROLES}
    history.add(1, {name: sums(after[name], 1.5) for name in ROLES})
    rows = language_rows([Run("a", history)])
    figures = history.base.figures, history.last.figures
    table = forgetting_table(*figures, "zh", result=history.last.forgetting)
    for name, label in ROLES.items():
        ratio = pytest.approx(math.exp(-0.5)) if name in same else None
        assert row(rows, "a", name).perplexity_ratio == ratio
        (shown,) = (line for line in table.rows if line.label == label)
        assert shown.ratio == ratio


def test_csv_holds_every_number_in_full() -> None:
    rows = language_rows([make_run('a, "b"\nc'), RUNS[1]])
    read = list(csv.DictReader(io.StringIO(forgetting_csv(rows))))
    assert len(read) == len(rows)
    for written, expected in zip(read, map(asdict, rows), strict=True):
        assert written.pop("failed") == ""
        assert written.keys() == expected.keys()
        for name, value in expected.items():
            if value is None:
                assert written[name] == ""
            elif isinstance(value, str):
                assert written[name] == value.replace("\n", r"\n")
            else:
                assert float(written[name]) == value


def test_markdown_is_a_table_of_the_rows() -> None:
    rows = language_rows(RUNS)
    table, note = forgetting_markdown(rows).split("\n\n")
    heads, _, *lines = (
        [cell.replace("\0", "|") for cell in line[2:-2].replace(r"\|", "\0").split(" | ")]
        for line in table.splitlines()
    )
    assert "Relative: Δ as a share" in note
    for line, expected in zip(lines, rows, strict=True):
        written = dict(zip(heads, line, strict=True))
        assert written["model"] == expected.model
        delta = float(written["Δ nats/byte"].replace("−", "-"))
        assert delta == pytest.approx(expected.delta_nll_per_byte, abs=6e-5)
        relative = float(written["relative"].rstrip("%").replace("−", "-"))
        assert relative == pytest.approx(100 * expected.relative, abs=6e-3)
        assert written["beyond noise"] == expected.beyond_noise
    assert [line[1] for line in lines[3:5]] == ["zh (target)", "mean of held-out"]
    assert "plain" not in forgetting_markdown(language_rows(RUNS[:1]))


def test_tokens_lost_and_won_stand_beside_the_model_that_has_them() -> None:
    run = make_run()
    change = run.history.evaluations[-1].forgetting
    flips = {"zh": Flips(lost=10, won=400), "de": Flips(lost=300, won=20)}
    known = replace(run.history.evaluations[-1], forgetting=replace(change, flips=flips))
    run.history.evaluations[-1] = known
    rows = language_rows([run, RUNS[1]])
    read = csv.DictReader(io.StringIO(forgetting_csv(rows)))
    counts = {(line["model"], line["language"]): (line["lost"], line["won"]) for line in read}
    assert counts.pop(("plain", "zh")) == ("10", "400")
    assert counts.pop(("plain", "de")) == ("300", "20")
    assert {*counts.values()} == {("", "")}
    for written in (forgetting_markdown(rows), languages_table(rows).note):
        assert "Tokens lost: ranked first by the base and not by the model" in written
    assert "| 15.0% | 1.0% |" in forgetting_markdown(rows)  # of 2,000 tokens
    table = languages_table(rows)
    places = [n for n, column in enumerate(table.columns) if column.title == "tokens lost"]
    assert [table.columns[place].group for place in places] == ["plain"]
    (german,) = (cells for cells in table.cells() if "de" in cells[0].text)
    assert [cell.key for cell in german[places[0] : places[0] + 2]] == [0.15, 0.01]
    assert "lost" not in forgetting_markdown(language_rows(RUNS))


def test_perplexities_past_the_float_range_are_written_and_sorted_as_such() -> None:
    run = make_run()
    figures = run.history.last.figures
    figures["de"] = replace(figures["de"], nll=1e7)
    table = languages_table(language_rows([run]))
    place = [column.title for column in table.columns].index("perplexity")
    cell = next(cells for cells in table.cells() if "de" in cells[0].text)[place]
    assert (cell.text, cell.key) == ("∞", math.inf)


def test_a_line_a_model_for_the_terminal() -> None:
    (cells,) = summary_table(language_rows(RUNS[:1])).cells()
    change = RUNS[0].model.forgetting
    assert [cell.text for cell in cells[:3]] == ["plain", "60", f"{change.target_gain:+.4f}"]
