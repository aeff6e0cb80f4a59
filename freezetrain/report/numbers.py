"""How numbers are written on the page: U+2212 as minus, a thin choice of digits, no NaN."""

import math

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: int) -> str:
    """``3,342,144``"""
    return f"{value:,}"


def amount(value: int) -> str:
    """About how many, for a sentence: ``3.3 million``; below a million, exactly."""
    for size, word in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if value >= size:
            return f"{value / size:.1f} {word}"
    return count(value)


def fixed(value: float, digits: int = 4) -> str:
    """``0.4121``, ``−0.0020``"""
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 4) -> str:
    """``+0.4121``, ``−0.0020``; nothing but zeros has no sign."""
    written = f"{value:+.{digits}f}".replace("-", "−")
    return written if any(digit in written for digit in "123456789") else written[1:]


def brief(value: float) -> str:
    """A change in a sentence: three decimals, up to five where the first three hide it."""
    digits = 3 if abs(value) >= 0.00995 else 4 if abs(value) >= 0.000995 else 5
    written = signed(value, digits)
    return written if written[0] in "+−" else signed(0.0, 3)


def perplexity(value: float | None) -> str:
    """``∞`` for None, which is how JSON holds an infinite perplexity; ``1.2×10⁹`` where long."""
    if value is None or math.isinf(value):
        return "∞"
    if value < 1e5:
        return f"{value:,.1f}" if value >= 10 else f"{value:.3f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"


def ratio(value: float | None) -> str:
    """A perplexity ratio; ``–`` where there is none (other tokens, or past the float range)."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value < 1e4 else perplexity(value)


def percent(share: float | None) -> str:
    """``31%``, ``0.64%``: a whole number from 10% on, two significant digits below; – for None."""
    if share is None:
        return "–"
    value = 100 * share
    return f"{value:.0f}%" if abs(value) >= 9.95 or value == 0 else f"{value:.2g}%"


def exact_percent(share: float) -> str:
    """``1.25%``: all digits, for a setting that names things."""
    return f"{100 * share:g}%"


def signed_percent(share: float | None) -> str:
    """``+4.12%``, ``−0.31%``; – for None."""
    return "–" if share is None else f"{signed(100 * share, 2)}%"


def seconds(value: float) -> str:
    """``4 min 12 s``; ``8.1 s`` below a minute."""
    if value < 59.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"
