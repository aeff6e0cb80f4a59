"""Forgetting as a compact table in the terminal."""

from collections.abc import Mapping

from rich.table import Table

from freezetrain.evaluation.figures import Figures
from freezetrain.evaluation.forgetting import forgetting


def forgetting_table(
    before: Mapping[str, Figures],
    after: Mapping[str, Figures],
    target: str | None = None,
    *,
    title: str | None = None,
    rows: int | None = None,
) -> Table:
    """The target language and the held-out ones, most forgotten first, with their mean below.

    ``rows`` limits the held-out languages that are shown, None shows all. Takes what
    ``forgetting`` takes and raises what it raises.
    """
    result = forgetting(before, after, target)
    order = sorted(
        result.languages, key=lambda language: -result.languages[language].delta_nll_per_byte
    )
    shown = order if rows is None else order[:rows]
    table = Table(title=title, title_justify="left", show_footer=True)
    table.add_column("language", footer=f"mean of {len(order)} held out")
    table.add_column("perplexity", justify="right")
    table.add_column("bits/byte", justify="right")
    table.add_column("Δ nats/byte", justify="right", footer=f"{result.mean:+.4f}")
    table.add_column("perplexity ×", justify="right")
    if target is not None and result.target_gain is not None:
        ratio = forgetting({target: before[target]}, {target: after[target]}).languages[target]
        table.add_row(
            f"{target} (target)",
            *_figures(after[target]),
            f"{ratio.delta_nll_per_byte:+.4f}",
            _ratio(ratio.perplexity_ratio),
            style="green",
            end_section=True,
        )
    for language in shown:
        change = result.languages[language]
        table.add_row(
            language,
            *_figures(after[language]),
            f"{change.delta_nll_per_byte:+.4f}",
            _ratio(change.perplexity_ratio),
        )
    if len(shown) < len(order):
        table.caption = f"{len(order) - len(shown)} less forgotten languages are not shown"
    return table


def _figures(figures: Figures) -> tuple[str, str]:
    return f"{figures.perplexity:.4g}", f"{figures.bits_per_byte:.4f}"


def _ratio(value: float | None) -> str:
    return "other tokens" if value is None else f"{value:.3f}"
