"""What all pages share: templates, plots for wide and narrow windows, writing the file."""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from freezetrain.escaping import visible, visible_lines
from freezetrain.files import write_text
from freezetrain.formats import language_name
from freezetrain.report.style import to_svg
from freezetrain.tables import Table, facts_table, to_html

Draw = Callable[[float], Figure]  # width in pixels of the page → figure


WIDTHS = {"wide": 760, "narrow": 350}  # px; the page shows one of them, by the window's width


def write_page(path: str | os.PathLike[str], template: str, **values: Any) -> None:
    """Fill in ``template`` and write it to ``path``; all values are escaped but ``Markup``.

    What cannot be seen in them is made visible; the filter ``lines`` leaves line breaks there.
    ``template`` is named with the room that it lies in: ``"paper/page.html.j2"``. Raises what
    ``write_text`` raises.
    """
    environment = Environment(
        loader=PackageLoader("freezetrain", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_data,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["language"] = language_name
    environment.filters["lines"] = lambda text: escape(visible_lines(text))
    environment.globals["to_html"] = to_html
    write_text(path, environment.get_template(template).render(**values))


def _data(value: Any) -> Any:
    """What a template writes of ``value``, before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def drawn(name: str, draw: Callable[..., Figure], *values: Any) -> dict[str, Markup]:
    """What ``draw`` makes of ``values`` at each of ``WIDTHS``, as SVG."""
    return {
        size: Markup(to_svg(draw(*values, width), f"{name}-{size}"))
        for size, width in WIDTHS.items()
    }


def settings_text(value: Any) -> str:
    """A setting as its recipe spells it: text as it is, all else as JSON; – for None."""
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def settings_table(settings: Mapping[str, Any]) -> Table:
    """The fields of a recipe, nested as they may be, with what they were set to."""
    rows = {name: settings_text(value) for name, value in flat(settings).items()}
    return facts_table("Settings", rows, ("setting", "value"))


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"model": {"path": "x"}}`` as ``{"model.path": "x"}``."""
    flattened: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            flattened |= flat(value, f"{prefix}{name}.")
        else:
            flattened[prefix + name] = value
    return flattened
