"""Numbers, names of languages and of models as text."""

import math
from collections import Counter
from collections.abc import Sequence

from freezetrain.errors import UserError
from freezetrain.escaping import shortened, visible

_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def count(value: int) -> str:
    """``3,342,144``"""
    return f"{value:,}"


def fixed(value: float, digits: int = 4) -> str:
    """``0.4121``, ``−0.0020``"""
    return f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 4) -> str:
    """``+0.4121``, ``−0.0020``; nothing but zeros has no sign."""
    written = f"{value:+.{digits}f}".replace("-", "−")
    return written if any(digit in written for digit in "123456789") else written[1:]


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


def share(value: float) -> str:
    """For a column of shares: ``41.2%``, and ``0.043%`` below a per cent."""
    return f"{100 * value:.1f}%" if value >= 0.01 else percent(value)


def ends(interval: Sequence[float] | None) -> str:
    """An interval of changes, ``+0.0912 to +0.1188``; nothing for None."""
    return "" if interval is None else f"{signed(interval[0])} to {signed(interval[1])}"


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


NAMES = {
    "ar": "Arabic",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "ml": "Malayalam",
    "ms": "Malay",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}


def language_name(code: str) -> str:
    """``"Chinese"`` for ``"zh"``; an unknown code as it is."""
    return NAMES.get(code, code)


def language_label(code: str, longest: int = 22) -> str:
    """``"Chinese zh"`` for a plot; an unknown code once, cut to ``longest`` characters."""
    return shortened(visible(f"{NAMES[code]} {code}" if code in NAMES else code), longest)


def language_and_code(code: str) -> str:
    """``"Chinese (zh)"`` for a table; an unknown code as it is."""
    return f"{NAMES[code]} ({code})" if code in NAMES else code


def shortest_endings(paths: Sequence[str]) -> list[str]:
    """The shortest ending of each path, by whole parts, that no other path has.

    ``runs/a/model`` and ``runs/b/model`` are ``a/model`` and ``b/model``; an id of the hub is the
    part after the slash. Raises UserError for the same path twice.
    """
    parts = [path.rstrip("/").split("/") for path in paths]
    for path, count in Counter("/".join(one) for one in parts).items():
        if count > 1:
            raise UserError(f"expected each path once, got {path} {count} times; leave one out")
    endings = [["/".join(one[-n:]) for n in range(1, len(one) + 1)] for one in parts]
    seen = Counter(ending for one in endings for ending in one)
    # One that is itself the ending of another has none of its own, and keeps its whole path.
    return [next((ending for ending in one if seen[ending] == 1), one[-1]) for one in endings]
