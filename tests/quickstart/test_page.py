"""The quickstart's page: parsed, and compared with the results that it was made from."""

import copy
import html
import re
from dataclasses import replace

import pytest
from made_quickstart import make_quickstart
from parsed_page import Page, number

from freezetrain.quickstart.page import QuickstartResults, render_quickstart


@pytest.fixture(scope="module")
def results() -> QuickstartResults:
    results = make_quickstart()
    infinite = replace(results.ablation["nothing"]["en"], nll=2e6)
    results.ablation["core"]["en"] = infinite
    return results


@pytest.fixture(scope="module")
def source(results, tmp_path_factory) -> str:
    before = copy.deepcopy(results)
    path = tmp_path_factory.mktemp("report") / "report.html"
    render_quickstart(results, path)
    assert results == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


def test_page_loads_nothing_and_refers_to_what_is_there(source, page):
    assert not re.search("https?:|@import", source)
    assert not {"link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert "src" not in attributes
        if target := attributes.get("href"):
            assert target.startswith("#") or (tag == "image" and target.startswith("data:image/"))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in page.tags if str(a.get("href", "")).startswith("#")}
    clips = set(re.findall(r"url\(#([^)]+)\)", source))
    assert links
    assert clips
    assert links | clips <= set(ids)


def test_ablation_table_holds_every_figure(results, page):
    rows = {row[0]: row[1:] for row in page.table("with a region set to zero")}
    assert len(rows) == len(results.languages) + 3  # two rows of headings, one of means
    for code, name in (("ar", "Arabic (ar)"), ("en", "English (en)"), ("zh", "Chinese (zh)")):
        before = results.ablation["nothing"][code]
        tokens, perplexity, nats, *rest = rows[name]
        assert number(tokens) == before.tokens
        assert number(perplexity) == pytest.approx(before.perplexity, abs=0.051)
        assert number(nats) == pytest.approx(before.nll_per_byte, abs=6e-5)
        for place, region in enumerate(("core", "random", "bottom")):
            after = results.ablation[region][code]
            if (region, code) == ("core", "en"):
                assert rest[2 * place] == "∞"
            else:
                assert number(rest[2 * place]) == pytest.approx(after.perplexity, abs=0.051)
            rise = after.nll_per_byte - before.nll_per_byte
            assert number(rest[2 * place + 1]) == pytest.approx(rise, abs=6e-5)


def test_the_other_tables_hold_every_figure(results, page):
    course = page.table("course of the runs")[1:]
    evaluations = [
        (variant.name, evaluation)
        for variant in results.variants
        for evaluation in variant.first.run.evaluations
    ]
    for row, (name, evaluation) in zip(course, evaluations, strict=True):
        change = evaluation.forgetting
        assert (row[0], number(row[1])) == (name, evaluation.step)
        seen = [number(cell) for cell in (row[2], row[3], row[5])]
        assert seen == pytest.approx([change.mean, change.target_gain, change.worst[1]], abs=6e-5)
        assert f"({change.worst[0]})" in row[4]
    languages = {row[0]: row for row in page.table("Every language against the base")}
    last = results.variants[0].first.run.model.forgetting
    assert number(languages["German (de)"][1]) == pytest.approx(
        last.languages["de"].delta_nll_per_byte, abs=6e-5
    )
    verified = page.table("bit for bit")[1]
    assert verified == ["core frozen", "17,695", "0", "4,111,023", "3.2581"]
    for direction in ("rows", "columns"):
        for row in page.table(f"fullest 5% of {direction}")[1:]:
            shares = [results.region.shares(direction)[layer][row[0]] for layer in range(4)]
            cells = [float(cell.rstrip("%")) / 100 for cell in row[1:]]
            assert cells == pytest.approx(shares, abs=0.0051)
    settings = dict(page.table("Settings")[1:])
    assert settings["learning rate"] == "0.001"
    assert settings["weights"] == "4,128,960"
    assert ["total", "4 min 12 s"] in page.table("Time")


def test_observations_and_commands(results, source):
    text = re.sub(r"<[^>]+>", "", source)
    assert len(re.findall("✓ holds", text)) == len(re.findall("✗ does not hold here", text)) == 1
    text = html.unescape(text)
    for observation in results.observations:
        assert observation.claim in text
        assert observation.seen in text
    train = "freezetrain train --model 'my bases/base' --region core.safetensors --texts TEXTS"
    assert f"{train} --languages+=zh" in text
    assert "freezetrain verify 'my bases/base' core-frozen/model core.safetensors" in text
    mean = results.variants[0].first.run.model.forgetting.mean
    assert f"core frozen {mean:+.4f}" in text


@pytest.mark.filterwarnings("error")
def test_names_are_escaped_and_the_same_results_give_the_same_bytes(tmp_path):
    odd = ["<b>&\"'$x_1$", "中文", "en"]
    results = make_quickstart(odd, layers=1, target="en")
    model = replace(results.model, name="</title><script>alert(1)</script>", built_in=False)
    picture = replace(results.region.picture, name="a<u>b")
    results = replace(
        results,
        model=model,
        region=replace(results.region, picture=picture),
        variants=[replace(v, name=f"<i>{v.name}") for v in results.variants],
        observations=[replace(results.observations[0], claim="<script>alert(2)</script>")],
    )
    (tmp_path / "a.html").write_text("older", encoding="utf-8")
    for name in ("a.html", "b.html"):
        render_quickstart(results, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.tags].count("script") == 1  # sorts the tables
    assert not {"b", "u"} & {tag for tag, _ in page.tags}
    assert page.text.count(odd[0] + " *") == 2  # a label in either width of the plot
    assert "a<u>b" in page.text


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("error")
def test_many_languages_and_layers(tmp_path):
    codes = [f"l{number:02d}" for number in range(60)]
    render_quickstart(make_quickstart(codes, layers=80), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert all(code in page.text for code in codes)


def test_a_model_without_blocks_to_show_has_no_such_section(tmp_path):
    results = make_quickstart(["en", "zh"], layers=1)
    region = replace(results.region, matrices=[], picture=None)
    render_quickstart(replace(results, region=region), tmp_path / "report.html")
    assert "Where in the model" not in (tmp_path / "report.html").read_text(encoding="utf-8")
