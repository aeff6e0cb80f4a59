"""The paper's page: parsed, and compared with the results that it was made from."""

import copy
import re
from dataclasses import replace

import pytest
from made_paper import LANGUAGES, MATRICES, PROMPT, make_paper
from parsed_page import Page, number

from freezetrain.paper.claims import paper_claims
from freezetrain.paper.page import claims_table, render_paper
from freezetrain.paper.results import Claim, Overlaps
from freezetrain.tables import to_terminal


@pytest.fixture(scope="module")
def results():
    results = make_paper(layers=2, ratios=(0.01, 0.05))
    languages = results.ablation.summary[0].languages
    languages["es"] = replace(languages["es"], perplexity=None)
    results.claims = paper_claims(results)
    return results


@pytest.fixture(scope="module")
def source(results, tmp_path_factory) -> str:
    before = copy.deepcopy(results)
    path = tmp_path_factory.mktemp("paper") / "report.html"
    render_paper(results, path)
    assert results == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def test_loads_nothing_and_refers_to_what_is_there(source, page):
    assert not re.search("https?:|@import", source)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert not any("src" in attributes for _, attributes in page.tags)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in page.tags if str(a.get("href", "")).startswith("#")}
    clips = set(re.findall(r"url\(#([^)]+)\)", source))
    assert links | clips <= set(ids)
    assert clips


def test_claims_are_marked_by_symbol_and_word(results, tmp_path):
    holds = [True, False, None, *[True] * 4]
    bare = replace(
        results,
        claims=[replace(c, holds=h) for c, h in zip(results.claims, holds, strict=True)],
        ablation=None, selectivity=None, dimensions=None, weights={}, overlap=Overlaps(),
    )  # fmt: skip
    render_paper(bare, tmp_path / "page.html")
    text = re.sub(r"<[^>]+>", "", (tmp_path / "page.html").read_text(encoding="utf-8"))
    marks = re.findall("✓ holds|✗ does not hold here|– cannot be told", text)
    assert marks == ["✓ holds", "✗ does not hold here", "– cannot be told", *["✓ holds"] * 4]
    assert "5 of 6; cannot be told: 1" in text
    for heading in ("What does each language lose", "single weight do?", "Beside this page"):
        assert (heading in text) == (heading == "Beside this page")


def test_the_claims_fit_a_terminal():
    claims = [Claim("A long claim " * 10, "paper", None, "seen " * 60)]
    (table,) = to_terminal(claims_table(claims), 80)
    assert len(table.columns) == 3


def test_removal_tables_hold_every_figure(results, page):
    before = results.ablation.figures["nothing"]
    for ratio, effects in results.removed.items():
        title = f"Every language without {100 * ratio:g}% of each matrix"
        rows = {row[0]: row[1:] for row in page.table(title)}
        both = zip(page.table(title), page.notes_of(title), strict=True)
        notes = {row[0]: note for row, note in both}
        assert len(rows) == 2 + 4 + 1
        for code, name in (("es", "Spanish (es)"), ("zh", "Chinese (zh)")):
            tokens, perplexity, nats, *rest = rows[name]
            assert number(tokens) == before[code].tokens
            assert number(perplexity) == pytest.approx(before[code].perplexity, abs=0.051)
            assert number(nats) == pytest.approx(before[code].nll_per_byte, abs=6e-5)
            for place, effect in enumerate(effects.values()):
                own = effect.languages[code]
                perplexity, rise = rest[2 * place : 2 * place + 2]
                if own.perplexity is None:
                    assert (perplexity, code, effect.kind) == ("∞", "es", "top")
                else:
                    assert number(perplexity) == pytest.approx(own.perplexity, rel=1e-3, abs=0.051)
                assert number(rise) == pytest.approx(own.rise, abs=6e-5)
            spread = effects["random"].languages[code].spread
            note = notes[name][1 + 3 + 3]
            assert number(note.removeprefix("±")) == pytest.approx(spread, abs=6e-5)
        mean = number(rows["mean"][4])
        assert mean == pytest.approx(effects["top"].mean_rise, abs=6e-5)


def test_weights_are_ranked_with_the_random_ones_among_them(results, page):
    changed = results.weights["scale"]
    rows = page.table("Single weights of recurring dimensions multiplied by 4")[1:]
    assert len(rows) == 20
    assert len(page.table("Single weights set to zero")) == 21
    rises = [number(row[4]) for row in rows]
    assert rises == sorted(rises, reverse=True)
    assert [row[1] for row in rows].count("random") == 10
    first, worst = changed.weights[0], changed.weights[0].worst
    assert rows[0][0] == first.what
    assert number(rows[0][2]) == first.value
    assert number(rows[0][6]) == pytest.approx(first.rise[worst], abs=6e-6)
    assert f"({worst})" in rows[0][5]
    before, after = rows[0][7].split(" → ")
    assert number(before) == pytest.approx(changed.before[worst], rel=1e-3, abs=0.051)
    assert number(after) == pytest.approx(first.perplexity[worst], rel=1e-3, abs=0.051)


def test_dimension_tables_hold_every_figure(results, page):
    core = results.dimensions.regions["core"]
    rows = page.table("How “core” gathers")[2:]
    assert [row[0] for row in rows] == [*MATRICES, "a random region"]
    for row in rows[:-1]:
        for cell, figure in zip(row[2:4], (core.rows, core.columns), strict=True):
            mean = sum(by_kind[row[0]] for by_kind in figure.values()) / 2
            assert number(cell.rstrip("%")) == pytest.approx(100 * mean, abs=0.051)
        for cell, figure in zip(row[4:], (core.gini_rows, core.gini_columns), strict=True):
            mean = sum(by_kind[row[0]] for by_kind in figure.values()) / 2
            assert number(cell) == pytest.approx(mean, abs=6e-4)
        writes = row[0] in ("self_attn.o_proj", "mlp.down_proj")
        assert row[1] == ("writes: rows" if writes else "reads: columns")
    assert rows[-1][2:] == ["2.1%", "1.8%", "0.110", "0.090"]
    assert [row[:2] for row in page.table("Dimensions of the residual stream")[1:]] == [
        ["2,100", "80"], ["14", "77"], ["7", "74"],
    ]  # fmt: skip
    for direction in ("rows", "columns"):
        for row in page.table(f"fullest 1% of {direction}, by layer")[1:]:
            shares = [core.shares(direction)[layer][row[0]] for layer in range(2)]
            cells = [float(cell.rstrip("%")) / 100 for cell in row[1:]]
            assert cells == pytest.approx(shares, abs=0.0051)


def test_language_tables_hold_every_figure(results, page):
    selectivity, overlap = results.selectivity, results.overlap
    for row, code in zip(page.table("with a language’s region zeroed")[1:], LANGUAGES, strict=True):
        effect = selectivity.dominance.languages[code]
        assert f"({code})" in row[0]
        expected = [effect.own, effect.mean_other, effect.largest_other]
        assert [number(cell) for cell in row[2:5]] == pytest.approx(expected, abs=6e-5)
        assert f"({effect.other})" in row[5]
        assert number(row[6]) == pytest.approx(selectivity.control[code][code], abs=6e-5)
    for row, own in zip(page.table("Rise of each language’s loss")[1:], LANGUAGES, strict=True):
        by_hand = [selectivity.rise[own][code] for code in LANGUAGES]
        assert [number(cell) for cell in row[1:]] == pytest.approx(by_hand, abs=6e-5)
    rows = page.table("Jaccard of the regions of languages")[1:]
    for row, shares in zip(rows, overlap.languages.jaccard, strict=True):
        assert [number(cell) for cell in row[1:]] == pytest.approx(shares, abs=6e-4)
    assert page.notes_of("Jaccard of the regions of languages")[1][1:] == ["chance 0.005"] * 4
    halves = [number(row[1]) for row in page.table("Regions of two halves")[1:]]
    assert halves == pytest.approx(overlap.halves.jaccard, abs=6e-4)
    assert dict(page.table("Settings")[1:])["engine.kind"] == "auto"
    assert ["scores", "4 min 12 s"] in page.table("Time")
    assert page.table("Scored texts (taylor)")[1][1:] == ["1,200", "614,400", "3.2500"]


def test_texts_stand_beside_what_was_zeroed(results, page):
    said = results.ablation.texts[0].texts
    start = page.text.index(PROMPT)
    after = [text for text in page.text[start:] if text.strip()]
    assert after[1:5] == ["nothing", said["nothing"], "top 1%", said["top 1%"]]
    assert page.text.index("top 5%", start) > page.text.index("With other regions zeroed")


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("error")
def test_odd_names_are_escaped_and_one_language_is_enough(tmp_path):
    odd = "<b>&\"'$x_1$"
    results = make_paper([odd], layers=1, ratios=(0.01,))
    results.model = replace(results.model, name="</title><script>alert(1)</script>")
    results.ablation.texts[0].texts["nothing"] = "<script>alert(2)</script>"
    results.claims = paper_claims(results)
    for name in ("a.html", "b.html"):
        render_paper(results, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 1  # sorts the tables
    assert [tag for tag, _ in page.tags].count("b") == 1  # the prompt
    assert page.text.count(odd) > 10
    assert "<script>alert(2)</script>" in page.text
    assert results.claims[5].holds is None
