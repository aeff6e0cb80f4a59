"""Names and other text from outside, as data: what cannot be seen in it is made visible.

Each border to a reader has one function that escapes what has a meaning there, and all of them
begin with :func:`visible`: ``terminal.Terminal`` (rich), ``tables.to_html`` and
``report.page.write_page`` (HTML), ``tables.markdown`` (Markdown), ``tables.to_csv`` (CSV),
``report.style.as_data`` (matplotlib), ``History.scalars`` and ``ForgettingBoard`` (loggers), and
:func:`for_mlflow`, which takes fewer signs than the other loggers.
"""

import hashlib
import re

# Control characters; what turns the direction of writing; marks without a width, but for the two
# joiners (U+200C, U+200D), which Persian and the scripts of India need; halves of surrogate pairs,
# as Python makes of file names that are not UTF-8; what XML may not hold.
_UNSEEN = (
    "\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f"
)
_NAME = re.compile(f"[{_UNSEEN}]")
_TEXT = re.compile(f"(?!\n)[{_UNSEEN}]")
_NOT_MLFLOW = re.compile(
    r"[^\w\-./ ]|-(?=[0-9a-f]+(?:[^\w./ ]|/\Z))|(?<![^/])/|/\Z|(?<![^/])\.+(?![^/])"
)

_LONGEST_NAME = 250  # bytes: MLflow takes as many characters, and a file's name 255 bytes
_LONGEST_PART = 200  # bytes: so that all figures of a language name it alike


def visible(text: str) -> str:
    r"""A name in one line: a line break as ``\n``, an escape as ``\x1b``, a mark as ``\u202e``."""
    return _NAME.sub(_spelt, text)


def visible_lines(text: str) -> str:
    """Text that may have several lines: as :func:`visible`, but line breaks stay."""
    return _TEXT.sub(_spelt, text)


def for_mlflow(name: str) -> str:
    """``name`` in letters and digits of any script and ``_ - . /`` and spaces, all MLflow takes.

    Any other sign as its number in Unicode: ``a+b`` as ``a-2b-b``; so are dots and nothing between
    two /, and a hyphen that would begin such a number: no two names become the same. What is longer
    than MLflow takes, or than 200 bytes between two /, has a digest in the place of its end.
    """
    taken = _NOT_MLFLOW.sub(
        lambda found: "".join(f"-{ord(sign):x}-" for sign in found.group()), visible(name)
    )
    parts = [_with_digest(part, _LONGEST_PART) for part in taken.split("/")]
    return _with_digest("/".join(parts), _LONGEST_NAME)


def _with_digest(text: str, longest: int) -> str:
    """``text``; where it has more bytes than ``longest``, its beginning and a digest of it.

    The digest stands between hyphens, where no sign has so long a number.
    """
    data = text.encode()
    if len(data) <= longest:
        return text
    digest = f"-{hashlib.sha256(data).hexdigest()[:16]}-"
    return data[: longest - len(digest)].decode(errors="ignore") + digest


def shortened(text: str, longest: int) -> str:
    """The beginning of ``text``, with … at its end where that is cut at ``longest`` characters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _spelt(character: re.Match[str]) -> str:
    return character.group().encode("unicode_escape").decode("ascii")
