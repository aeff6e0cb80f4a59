"""Forgetting as a compact table in the terminal."""

from collections.abc import Mapping

from rich.markup import escape
from rich.table import Table

from freezetrain.evaluation.figures import Figures
from freezetrain.evaluation.forgetting import Forgetting, Interval, forgetting


def forgetting_table(
    before: Mapping[str, Figures],
    after: Mapping[str, Figures],
    target: str | None = None,
    *,
    found: Forgetting | None = None,
    title: str | None = None,
    rows: int | None = None,
) -> Table:
    """The target language and the held-out ones, most forgotten first, with their mean below.

    ``rows`` limits the held-out languages that are shown, None shows all. ``found``: what comparing
    document by document gave; changes whose 95% interval holds 0 are then marked. Takes what
    ``forgetting`` takes and raises what it raises.
    """
    result = found or forgetting(before, after, target)
    intervals = [result.target_gain_interval, result.mean_interval]
    intervals += [change.interval for change in result.languages.values()]
    order = sorted(
        result.languages, key=lambda language: -result.languages[language].delta_nll_per_byte
    )
    shown = order if rows is None else order[:rows]
    table = Table(title=title and escape(title), title_justify="left", show_footer=True)
    table.add_column("language", footer=f"mean of {len(order)} held out")
    table.add_column("perplexity", justify="right")
    table.add_column("bits/byte", justify="right")
    table.add_column(
        "Δ nats/byte", justify="right", footer=_change(result.mean, result.mean_interval)
    )
    table.add_column("perplexity ×", justify="right")
    if target is not None and result.target_gain is not None:
        ratio = forgetting({target: before[target]}, {target: after[target]}).languages[target]
        table.add_row(
            f"{escape(target)} (target)",
            *_figures(after[target]),
            _change(ratio.delta_nll_per_byte, result.target_gain_interval),
            _ratio(ratio.perplexity_ratio),
            style="green",
            end_section=True,
        )
    for language in shown:
        change = result.languages[language]
        table.add_row(
            escape(language),
            *_figures(after[language]),
            _change(change.delta_nll_per_byte, change.interval),
            _ratio(change.perplexity_ratio),
        )
    captions = []
    if any(_holds_zero(interval) for interval in intervals):
        captions.append("≈: cannot be told from chance")
    if len(shown) < len(order):
        captions.append(f"{len(order) - len(shown)} less forgotten languages are not shown")
    table.caption = "; ".join(captions) or None
    return table


def _holds_zero(interval: Interval | None) -> bool:
    return interval is not None and interval[0] <= 0 <= interval[1]


def _change(value: float, interval: Interval | None) -> str:
    return f"≈ {value:+.4f}" if _holds_zero(interval) else f"{value:+.4f}"


def _figures(figures: Figures) -> tuple[str, str]:
    return f"{figures.perplexity:.4g}", f"{figures.bits_per_byte:.4f}"


def _ratio(value: float | None) -> str:
    return "other tokens" if value is None else f"{value:.3f}"
