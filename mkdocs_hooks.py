"""What mkdocs.yml cannot say: pages from outside docs/, and pages made of the source."""

import json
import re
from base64 import b64decode
from html import escape
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import freezetrain
from freezetrain.cli.fields import Field, groups
from freezetrain.cli.verbs import VERBS

ROOT = Path(__file__).parent
NOTEBOOK = "docs/tutorial.ipynb"
ROLE = re.compile(r":(?:attr|class|func|meth|mod):<code>~?([^<]*)</code>")
LINK = re.compile(r"(?<=\]\()[^()#:\s]+(?=[)#])")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the home page, the notebook, what pages link to outside docs/, a page for each verb."""
    found = {"README.md", "CHANGELOG.md"}
    found |= {f"docs/{file.src_uri}" for file in files.documentation_pages()}
    text, pictures = notebook_page(ROOT / NOTEBOOK)
    text = _moved(text, NOTEBOOK, "")
    text += "\nThis page is a notebook: [tutorial.ipynb](tutorial.ipynb).\n"
    files.append(File.generated(config, _place(NOTEBOOK), content=text))
    for name, picture in pictures.items():
        files.append(File.generated(config, name, content=picture))
    todo = sorted(found)
    for path in todo:  # which grows: pages from outside have links too
        place = _place(path)
        if files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            linked = {_linked(path, link) for link in LINK.findall(text)} - found
            found |= linked
            todo += sorted(link for link in linked if (ROOT / link).is_file())
    files.append(File.generated(config, "python.md", content=names_page()))
    for verb in VERBS:
        files.append(File.generated(config, f"fields/{verb}.md", content=fields_page(verb)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository, as links between pages of the site."""
    if page.file.abs_src_path is None:
        return markdown
    path = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    return _moved(markdown, path, dirname(page.file.src_uri))


def _moved(markdown: str, path: str, here: str) -> str:
    """Text of the file ``path``, with its links as they are from the site's folder ``here``."""

    def moved(link: re.Match[str]) -> str:
        linked = _linked(path, link[0])
        return relpath(_place(linked), here) if (ROOT / linked).is_file() else link[0]

    return LINK.sub(moved, markdown)


def _linked(path: str, link: str) -> str:
    """The file that the file ``path`` links to; both from the repository's root on."""
    return normpath(join(dirname(path), link))


def _place(path: str) -> str:
    """Where a file of the repository is in the site."""
    if path == NOTEBOOK:
        return "tutorial.md"
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """What docstrings have of reStructuredText, :func:`name` and ::, and Markdown has not."""
    if page.file.src_uri != "python.md":
        return html
    return ROLE.sub(r"<code>\1</code>", html).replace("::</p>", ":</p>")


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Markdown: the notebook's cells with what they have printed; and its pictures, by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text']).rstrip()}\n```")
            elif picture := output.get("data", {}).get("image/png"):
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = b64decode(picture)
                parts.append(f"![What the code above draws]({name})")
    return "\n\n".join(parts) + "\n", pictures


def names_page() -> str:
    """Markdown: the public names of the package, from their docstrings."""
    parts = [
        "# Python names",
        "What `import freezetrain` gives. [Trainers](trainers.md) has examples for each trainer.",
        *(
            f"::: freezetrain.{name}"
            for name in sorted(freezetrain.__all__, key=str.lower)
            if name != "__version__"
        ),
    ]
    return "\n\n".join(parts) + "\n"


def fields_page(verb: str) -> str:
    """Markdown: every field of the recipe of ``verb``, as its ``--help`` has them."""
    parts = [
        f"# {verb}",
        VERBS[verb].help,
        f"Every field of its recipe. `freezetrain {verb} --help` says the same; each field is also "
        "an option, as `--FIELD VALUE`. With `null` as its default, a field may be left out.",
    ]
    for group in groups(VERBS[verb].recipe_type(), items=True):
        if group.name:
            parts += [f"## {group.name}", _prose(group.doc)]
        if group.optional:
            parts.append("May be left out: `null`.")
        rows = ["| field | type | default | what it is |", "|---|---|---|---|"]
        parts.append("\n".join([*rows, *map(_row, group.fields)]))
    return "\n\n".join(parts) + "\n"


def _row(field: Field) -> str:
    names = f"`{field.name}`" + (f" or `--{field.short}`" if field.short else "")
    default = "required" if field.default is None else f"`{field.default}`"
    return f"| {names} | `{field.type}` | {default} | {_prose(field.doc)} |"


def _prose(text: str) -> str:
    """Only backticks have a meaning."""
    parts = re.split(r"(`[^`]*`)", text.replace("``", "`"))
    return "".join(
        part if part.startswith("`") else re.sub(r"([\\*_|\[\]])", r"\\\1", escape(part, False))
        for part in parts
    )
