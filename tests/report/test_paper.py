"""The paper's page: parsed, and compared with the results that it was made from."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_paper import MATRICES, PROMPT, make_paper
from parsed_page import Page, number

from freezetrain.paper.claims import paper_claims
from freezetrain.paper.page import render_paper

LANGUAGES = ["en", "es", "ja", "zh"]


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    results = make_paper(LANGUAGES, layers=2, ratios=(0.01, 0.05))
    results["ablation"]["summary"][0]["languages"]["es"]["perplexity"] = None
    before = copy.deepcopy(results)
    results["claims"] = paper_claims(results)
    before["claims"] = results["claims"]
    path = tmp_path_factory.mktemp("paper") / "report.html"
    render_paper(results, path)
    assert results == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return results, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(rendered: tuple[dict[str, Any], str]) -> Iterator[Page]:
    return Page(rendered[1])


def test_loads_nothing_and_refers_to_what_is_there(
    rendered: tuple[dict[str, Any], str], page: Page
) -> None:
    assert not re.search("https?:|@import", rendered[1])
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    assert not any("src" in attributes for _, attributes in page.tags)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in page.tags if str(a.get("href", "")).startswith("#")}
    clips = set(re.findall(r"url\(#([^)]+)\)", rendered[1]))
    assert links | clips <= set(ids)
    assert clips


def test_claims_are_marked_by_symbol_and_word(
    rendered: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    results = {**rendered[0], "claims": copy.deepcopy(rendered[0]["claims"])}
    for one, holds in zip(results["claims"], [True, False, None], strict=False):
        one["holds"] = holds
    # The rest of the page takes long to draw.
    parts = dict.fromkeys(("ablation", "weights", "dimensions", "selectivity", "overlap"))
    render_paper(results | parts, tmp_path / "page.html")
    text = re.sub(r"<[^>]+>", "", (tmp_path / "page.html").read_text(encoding="utf-8"))
    marks = re.findall("✓ holds|✗ does not hold here|– cannot be told", text)
    assert marks == ["✓ holds", "✗ does not hold here", "– cannot be told", *["✓ holds"] * 4]
    assert "5 of 6 claims of the paper hold on this model; 1 could not be told." in text
    for heading in ("What does each language lose", "single weight do?", "Beside this page"):
        assert (heading in text) == (heading == "Beside this page")


def test_removal_tables_hold_every_figure(rendered: tuple[dict[str, Any], str], page: Page) -> None:
    ablation = rendered[0]["ablation"]
    for ratio in (0.01, 0.05):
        title = f"Every language without {100 * ratio:g}% of each matrix"
        rows = {row[0]: row[1:] for row in page.table(title)}
        both = zip(page.table(title), page.notes_of(title), strict=True)
        notes = {row[0]: note for row, note in both}
        assert len(rows) == 2 + 4 + 1
        of_kind = {one["kind"]: one for one in ablation["summary"] if one["ratio"] == ratio}
        for code, name in (("es", "Spanish (es)"), ("zh", "Chinese (zh)")):
            cells = rows[name]
            before = ablation["figures"]["nothing"][code]
            assert number(cells[0]) == pytest.approx(before["perplexity"], abs=0.051)
            assert number(cells[1]) == pytest.approx(before["bits_per_byte"], abs=6e-5)
            for place, kind in enumerate(("top", "random", "bottom")):
                one = of_kind[kind]["languages"][code]
                perplexity, bits, rise = cells[2 + 3 * place : 5 + 3 * place]
                if one["perplexity"] is None:
                    assert (perplexity, code, kind) == ("∞", "es", "top")
                else:
                    assert number(perplexity) == pytest.approx(
                        one["perplexity"], rel=1e-3, abs=0.051
                    )
                names = of_kind[kind]["regions"]
                every = [ablation["figures"][region][code]["bits_per_byte"] for region in names]
                assert number(bits) == pytest.approx(sum(every) / len(every), abs=6e-5)
                assert number(rise) == pytest.approx(one["rise"], abs=6e-5)
            note = notes[name][2 + 3 + 3]
            spread = of_kind["random"]["languages"][code]["spread"]
            assert number(note.removeprefix("±")) == pytest.approx(spread, abs=6e-5)
        mean = number(rows["mean"][4])
        assert mean == pytest.approx(of_kind["top"]["mean_rise"], abs=6e-5)


def test_weights_are_ranked_with_the_random_ones_among_them(
    rendered: tuple[dict[str, Any], str], page: Page
) -> None:
    found = rendered[0]["weights"]["scale"]
    rows = page.table("Single weights of dimensions that recur multiplied by 4")[1:]
    assert len(rows) == 20
    assert len(page.table("Single weights set to zero")) == 21
    rises = [number(row[4]) for row in rows]
    assert rises == sorted(rises, reverse=True)
    assert [row[1] for row in rows].count("random") == 10
    first = found["weights"][0]
    worst = max(first["rise"], key=lambda code: first["rise"][code])
    assert rows[0][0] == f"{first['name']}[{first['index'][0]}]"
    assert number(rows[0][2]) == first["value"]
    assert number(rows[0][6]) == pytest.approx(first["rise"][worst], abs=6e-6)
    assert f"({worst})" in rows[0][5]
    before, after = rows[0][7].split(" → ")
    assert number(before) == pytest.approx(found["before"][worst], rel=1e-3, abs=0.051)
    assert number(after) == pytest.approx(first["perplexity"][worst], rel=1e-3, abs=0.051)


def test_dimension_tables_hold_every_figure(
    rendered: tuple[dict[str, Any], str], page: Page
) -> None:
    found = rendered[0]["dimensions"]
    core = found["regions"]["core"]
    rows = page.table("How “core” gathers")[2:]
    assert [row[0] for row in rows] == [*MATRICES, "a random region"]
    for row in rows[:-1]:
        for cell, figure in zip(row[2:4], ("rows", "columns"), strict=True):
            mean = sum(layer[row[0]] for layer in core[figure].values()) / 2
            assert number(cell.rstrip("%")) == pytest.approx(100 * mean, abs=0.051)
        for cell, figure in zip(row[4:], ("gini_rows", "gini_columns"), strict=True):
            mean = sum(layer[row[0]] for layer in core[figure].values()) / 2
            assert number(cell) == pytest.approx(mean, abs=6e-4)
        writes = row[0] in ("self_attn.o_proj", "mlp.down_proj")
        assert row[1] == ("writes: rows" if writes else "reads: columns")
    assert [row[:2] for row in page.table("Dimensions of the residual stream")[1:]] == [
        ["2,100", "80"], ["14", "77"], ["7", "74"],
    ]  # fmt: skip
    for way in ("rows", "columns"):
        for row in page.table(f"fullest 1% of {way}, by layer")[1:]:
            shares = [core[way][str(layer)][row[0]] for layer in range(2)]
            cells = [float(cell.rstrip("%")) / 100 for cell in row[1:]]
            assert cells == pytest.approx(shares, abs=0.0051)


def test_language_tables_hold_every_figure(
    rendered: tuple[dict[str, Any], str], page: Page
) -> None:
    results = rendered[0]
    found, overlap = results["selectivity"], results["overlap"]
    for row, code in zip(page.table("with a language’s region zeroed")[1:], LANGUAGES, strict=True):
        one = found["dominance"]["languages"][code]
        assert f"({code})" in row[0]
        assert [number(cell) for cell in row[2:5]] == pytest.approx(
            [one["own"], one["mean_other"], one["largest_other"]], abs=6e-5
        )
        assert f"({one['other']})" in row[5]
        assert number(row[6]) == pytest.approx(found["control"][code][code], abs=6e-5)
    for row, own in zip(page.table("Rise of each language’s loss")[1:], LANGUAGES, strict=True):
        by_hand = [found["rise"][own][code] for code in LANGUAGES]
        assert [number(cell) for cell in row[1:]] == pytest.approx(by_hand, abs=6e-5)
    of = page.table("Jaccard of the regions of languages")[1:]
    for row, shares in zip(of, overlap["languages"]["jaccard"], strict=True):
        assert [number(cell) for cell in row[1:]] == pytest.approx(shares, abs=6e-4)
    assert page.notes_of("Jaccard of the regions of languages")[1][1:] == ["chance 0.005"] * 4
    halves = page.table("Regions of two halves")[1:]
    assert [number(row[1]) for row in halves] == pytest.approx(
        overlap["halves"]["jaccard"], abs=6e-4
    )
    settings = dict(page.table("Settings")[1:])
    assert settings["engine.kind"] == "auto"
    assert ["scores", "4 min 12 s"] in page.table("Time")
    assert page.table("Scored texts (taylor)")[1][1:] == ["1,200", "614,400", "3.2500"]


def test_texts_stand_beside_what_was_zeroed(
    rendered: tuple[dict[str, Any], str], page: Page
) -> None:
    said = rendered[0]["ablation"]["texts"][0]["texts"]
    assert PROMPT in page.text
    start = page.text.index(PROMPT)
    told = [text for text in page.text[start:] if text.strip()]
    assert told[1:5] == ["nothing", said["nothing"], "top 1%", said["top 1%"]]
    assert page.text.index("top 5%", start) > page.text.index("With other regions zeroed")


@pytest.mark.filterwarnings("error")
def test_odd_names_are_escaped_and_one_language_is_enough(tmp_path: Path) -> None:
    odd = "<b>&\"'$x_1$"
    results = make_paper([odd], layers=1, ratios=(0.01,))
    results["model"] |= {"name": "</title><script>alert(1)</script>"}
    results["ablation"]["texts"][0]["texts"]["nothing"] = "<script>alert(2)</script>"
    results["claims"] = paper_claims(results)
    for name in ("a.html", "b.html"):
        render_paper(results, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 1  # sorts the tables
    assert [tag for tag, _ in page.tags].count("b") == 1  # the prompt
    assert page.text.count(odd) > 10
    assert "<script>alert(2)</script>" in page.text
    assert results["claims"][5]["holds"] is None
