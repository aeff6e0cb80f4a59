"""Counts and lists as they stand in a sentence."""

from collections.abc import Sequence

from freezetrain.report.numbers import count


def counted(value: int, noun: str) -> str:
    """``1 step``, ``2,000 steps``"""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``"""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def quoted(names: Sequence[str]) -> str:
    """``“a”, “b” and “c”``"""
    return listed([f"“{name}”" for name in names])
