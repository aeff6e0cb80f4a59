"""The documentation as a site: every page is in its navigation, every field in its reference."""

import inspect
import json
import re
import runpy
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import freezetrain
from freezetrain.cli.verbs import VERBS
from freezetrain.recipe.mapping import field_names
from freezetrain.training.recipe import TrainRecipe

pytest.importorskip("material", reason="the extra docs is not installed")
pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parent.parent
HOOKS = runpy.run_path(str(ROOT / "mkdocs_hooks.py"))


def pages_of(navigation) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [page for part in parts for page in pages_of(part)]


def site(**settings):
    return load_config(str(ROOT / "mkdocs.yml"), **settings)


def test_navigation_names_every_page_and_verb():
    pages = pages_of(site().nav)
    assert len(pages) == len(set(pages))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(pages)
    assert [page for page in pages if page.startswith("fields/")] == [
        f"fields/{verb}.md" for verb in VERBS
    ]


@pytest.mark.parametrize("verb", VERBS)
def test_reference_has_every_field(verb):
    page = HOOKS["fields_page"](verb)
    rows = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    named = rows + re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert len(named) == len(set(named))
    of_items = {name for name in named if "[N]" in name or ".NAME" in name}
    assert set(named) - of_items == set(field_names(VERBS[verb].recipe_type()))


def test_reference_says_type_and_default():
    page = HOOKS["fields_page"]("train")
    assert f"| `checkpoint_every` | `INT` | `{TrainRecipe.checkpoint_every}` | " in page
    assert "| `model.path` or `--model` | `TEXT` | required | " in page
    assert "KL(base \\|\\| model)" in page  # a bar is no border of a cell
    assert "\n## brake\n" in page
    assert "| `variants.NAME.learning_rates` | `[FLOAT,...]` | `[]` | " in HOOKS["fields_page"](
        "compare"
    )


def test_the_notebook_is_a_page_of_its_code_outputs_and_pictures():
    notebook = json.loads((ROOT / HOOKS["NOTEBOOK"]).read_text(encoding="utf-8"))
    page, pictures = HOOKS["notebook_page"](ROOT / HOOKS["NOTEBOOK"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = re.findall(r"^```python\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE)
    assert shown == ["".join(cell["source"]) for cell in code]
    printed = [each for cell in code for each in cell["outputs"] if "text" in each]
    assert page.count("\n```text\n") == len(printed)
    assert re.findall(r"!\[[^\]]+\]\((.+?)\)", page) == list(pictures)
    assert all(data.startswith(b"\x89PNG") for data in pictures.values())
    assert len(pictures) == 2


class Links(HTMLParser):
    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.anchors |= {named[name] for name in ("id", "name") if named.get(name)}
        self.links |= {named[name] for name in ("href", "src") if named.get(name)}


@pytest.mark.exhaustive
def test_site_builds_strictly_and_its_links_lead_somewhere(tmp_path):
    build(site(strict=True, site_dir=str(tmp_path / "site")))
    # 404.html alone has links from the root of a server, which is not known.
    pages = {page: Links(page) for page in (tmp_path / "site").rglob("index.html")}
    assert len(pages) >= len(pages_of(site().nav))
    checked = 0
    for page, parsed in pages.items():
        for link in parsed.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{page}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{page}: {link}"
            checked += 1
    assert checked > 1000
    reached = {"benchmarks/freezing_ways.py", "study/small_zh.json", "fields/train/index.html"}
    reached |= {"tutorial/index.html", "tutorial-2.png", "tutorial.ipynb"}
    assert all((tmp_path / "site" / name).is_file() for name in reached)
    names = pages[tmp_path / "site" / "python" / "index.html"]
    assert {
        f"freezetrain.{name}" for name in freezetrain.__all__ if name != "__version__"
    } <= names.anchors
    text = (tmp_path / "site" / "python" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r":(?:attr|class|func|meth|mod):", text)
    freeze = re.sub(r"<[^>]+>", "", text.split('id="freezetrain.freeze"')[1].split("<h2 ")[0])
    for argument in inspect.signature(freezetrain.freeze).parameters:
        assert re.search(rf"\b{argument}: ", freeze), argument
