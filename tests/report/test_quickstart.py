import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from parsed_page import Page, number

from freezetrain.errors import UserError
from freezetrain.quickstart.page import render_report

Make = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def rendered(make: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    results = make()
    results["ablation"]["core"]["en"]["perplexity"] = None
    path = tmp_path_factory.mktemp("report") / "report.html"
    render_report(results, path)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    return results, path.read_text(encoding="utf-8")


def test_page_parses_and_loads_nothing(rendered: tuple[dict[str, Any], str]) -> None:
    page = Page(rendered[1])
    assert "http:" not in rendered[1]
    assert "https:" not in rendered[1]
    assert "@import" not in rendered[1]
    assert not {"script", "link", "iframe", "object", "img"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert "src" not in attributes
        if target := attributes.get("href"):
            assert target.startswith("#") or (tag == "image" and target.startswith("data:image/"))


def test_ids_are_unique_and_all_that_is_referred_to_is_there(
    rendered: tuple[dict[str, Any], str],
) -> None:
    page = Page(rendered[1])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {str(a["href"])[1:] for _, a in page.tags if str(a.get("href", "")).startswith("#")}
    clips = set(re.findall(r"url\(#([^)]+)\)", rendered[1]))
    assert links
    assert clips
    assert links | clips <= set(ids)


def test_ablation_table_holds_every_figure(rendered: tuple[dict[str, Any], str]) -> None:
    results, source = rendered
    rows = {row[0]: row[1:] for row in Page(source).table("with a region set to zero")}
    ablation = results["ablation"]
    for code, name in (("ar", "Arabic (ar)"), ("en", "English (en)"), ("zh", "Chinese (zh)")):
        before = ablation["nothing"][code]
        tokens, perplexity, bits, *rest = rows[name]
        assert number(tokens) == before["tokens"]
        assert number(perplexity) == pytest.approx(before["perplexity"], abs=0.051)
        assert number(bits) == pytest.approx(before["bits_per_byte"], abs=6e-5)
        for place, region in enumerate(("core", "random", "bottom")):
            after = ablation[region][code]
            if after["perplexity"] is None:
                assert rest[2 * place] == "∞"
            else:
                assert number(rest[2 * place]) == pytest.approx(after["perplexity"], abs=0.051)
            rise = after["bits_per_byte"] - before["bits_per_byte"]
            assert number(rest[2 * place + 1]) == pytest.approx(rise, abs=6e-5)
    assert rows["English (en)"][3] == "∞"
    assert len(rows) == 30 + 3  # two rows of headings, one of means


def test_forgetting_table_holds_every_figure(rendered: tuple[dict[str, Any], str]) -> None:
    results, source = rendered
    rows = {row[0]: row[1:] for row in Page(source).table("before and after training")}
    assert len(rows) == 30 + 3
    for place, run in enumerate(results["runs"].values()):
        last = run["evaluations"][-1]
        for code, name in (("ar", "Arabic (ar)"), ("ta", "Tamil (ta)")):
            perplexity, ratio, delta = rows[name][2 + 3 * place : 5 + 3 * place]
            change = last["forgetting"]["languages"][code]
            after = last["figures"][code]["perplexity"]
            assert number(perplexity) == pytest.approx(after, abs=0.051)
            assert number(ratio) == pytest.approx(change["perplexity_ratio"], abs=6e-4)
            assert number(delta) == pytest.approx(change["delta_nll_per_byte"], abs=6e-5)
        target = rows["Chinese (zh) (target)"][4 + 3 * place]
        assert number(target) == pytest.approx(-last["forgetting"]["target_gain"], abs=6e-5)
        mean = rows["mean of held-out"][4 + 3 * place]
        assert number(mean) == pytest.approx(last["forgetting"]["mean"], abs=6e-5)


def test_the_other_tables_hold_every_figure(rendered: tuple[dict[str, Any], str]) -> None:
    results, source = rendered
    page = Page(source)
    course = page.table("course of the runs")[1:]
    evaluations = [(name, e) for name, run in results["runs"].items() for e in run["evaluations"]]
    for row, (name, evaluation) in zip(course, evaluations, strict=True):
        change = evaluation["forgetting"]
        assert (row[0], number(row[1])) == (name, evaluation["step"])
        seen = [number(cell) for cell in (*row[2:5], row[6])]
        expected = [change[key] for key in ("mean", "backward_transfer", "target_gain")]
        expected.append(change["worst"]["delta_nll_per_byte"])
        assert seen == pytest.approx(expected, abs=6e-5)
        assert f"({change['worst']['language']})" in row[5]
    frozen = page.table("bit for bit")[1]
    assert frozen == ["core frozen", "17,695", "0", "4,111,023", "3.2581"]
    for direction in ("rows", "columns"):
        for row in page.table(f"fullest 5% of {direction}")[1:]:
            shares = [results["region"][direction][str(layer)][row[0]] for layer in range(4)]
            cells = [float(cell.rstrip("%")) / 100 for cell in row[1:]]
            assert cells == pytest.approx(shares, abs=0.0051)
    settings = dict(page.table("Settings")[1:])
    assert settings["learning rate"] == "0.001"
    assert settings["weights"] == "4,128,960"
    assert ["total", "4 min 12 s"] in page.table("Time")


def test_observations_are_marked_by_symbol_and_word(rendered: tuple[dict[str, Any], str]) -> None:
    source = re.sub(r"<[^>]+>", "", rendered[1])
    assert len(re.findall("✓ holds", source)) == 2
    assert len(re.findall("✗ does not hold here", source)) == 1
    for observation in rendered[0]["observations"]:
        assert observation["claim"] in source
        assert observation["seen"] in source


def test_the_commands_name_what_lies_beside_the_page(
    rendered: tuple[dict[str, Any], str],
) -> None:
    source = html.unescape(rendered[1])
    train = "freezetrain train --model 'my bases/base' --region core.safetensors --texts TEXTS"
    assert f"{train} --languages+=zh" in source
    assert "freezetrain verify 'my bases/base' core-frozen core.safetensors" in source


def test_same_results_same_bytes_and_an_older_page_is_replaced(make: Make, tmp_path: Path) -> None:
    results = make(["en", "zh"], layers=1)
    (tmp_path / "a.html").write_text("older", encoding="utf-8")
    render_report(results, tmp_path / "a.html")
    render_report(results, tmp_path / "b.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("languages", "layers"), [(2, 1), (60, 80)])
def test_few_and_many_languages_and_layers(
    make: Make, tmp_path: Path, languages: int, layers: int
) -> None:
    codes = [f"l{number:02d}" for number in range(languages)]
    render_report(make(codes, layers=layers), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.table("before and after training")) == languages + 3
    assert all(code in page.text for code in codes)


@pytest.mark.filterwarnings("error")
def test_names_are_escaped_in_text_and_plots(make: Make, tmp_path: Path) -> None:
    odd = ["<b>&\"'$x_1$", "中文", "en"]
    results = make(odd, layers=1, target="en")
    results["model"] |= {"name": "</title><script>alert(1)</script>", "built_in": False}
    results["runs"] = {f"<i>{name}": run for name, run in results["runs"].items()}
    results["region"]["picture"]["name"] = "a<u>b"
    results["observations"][0]["claim"] = "<script>alert(2)</script>"
    render_report(results, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not {"script", "b", "u"} & {tag for tag, _ in page.tags}
    # 1 table row, 1 label in either width of the forgetting plot; the ablation's are starred
    assert page.text.count(odd[0]) >= 3
    assert page.text.count(odd[0] + " *") == 2
    assert "a<u>b" in page.text


def test_a_model_without_blocks_to_show_has_no_such_section(make: Make, tmp_path: Path) -> None:
    results = make(["en", "zh"], layers=1)
    results["region"] |= {"matrices": [], "picture": None}
    render_report(results, tmp_path / "report.html")
    assert "Where in the model" not in (tmp_path / "report.html").read_text(encoding="utf-8")


class TestNotWritable:
    @pytest.fixture
    def results(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        monkeypatch.setattr("freezetrain.report.page.render_page", lambda *_, **__: "page " * 100)
        return make(["en", "zh"], layers=1)

    def test_folder_is_a_file(self, results: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine", encoding="utf-8")
        with pytest.raises(UserError, match=r"report\.html"):
            render_report(results, tmp_path / "file" / "report.html")
        assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"

    def test_path_is_a_folder(self, results: dict[str, Any], tmp_path: Path) -> None:
        (tmp_path / "report.html").mkdir()
        with pytest.raises(UserError, match=r"report\.html"):
            render_report(results, tmp_path / "report.html")
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

    def test_disk_full_leaves_the_older_page(
        self, results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "report.html").write_text("older", encoding="utf-8")
        whole = Path.write_text

        def half(self: Path, text: str, **options: Any) -> int:
            whole(self, text[:100], **options)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", half)
        with pytest.raises(UserError, match="No space left"):
            render_report(results, tmp_path / "report.html")
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        assert (tmp_path / "report.html").read_text(encoding="utf-8") == "older"
