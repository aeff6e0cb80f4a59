"""Numbers and names as text."""

import math

import pytest

from freezetrain.errors import UserError
from freezetrain.formats import (
    percent,
    perplexity,
    seconds,
    shortest_endings,
    signed,
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "∞"),
        (math.inf, "∞"),
        (3.36149, "3.361"),
        (83.14, "83.1"),
        (12345.67, "12,345.7"),
        (1.234e12, "1.23×10¹²"),
        (9.999e107, "1.00×10¹⁰⁸"),
    ],
)
def test_perplexity(value: float | None, written: str) -> None:
    assert perplexity(value) == written


def test_a_change_that_rounds_to_zero_has_no_sign() -> None:
    assert signed(-0.00001) == "0.0000"
    assert signed(-0.00006) == "−0.0001"


@pytest.mark.parametrize(
    ("share", "written"), [(0.314, "31%"), (0.0958, "9.6%"), (0.0043, "0.43%"), (None, "–")]
)
def test_percent(share: float | None, written: str) -> None:
    assert percent(share) == written


@pytest.mark.parametrize(
    ("value", "written"), [(8.14, "8.1 s"), (59.97, "1 min 00 s"), (252.4, "4 min 12 s")]
)
def test_seconds(value: float, written: str) -> None:
    assert seconds(value) == written


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["meta-llama/Llama-2-7b-hf"], ["Llama-2-7b-hf"]),
        (["runs/a/model", "runs/b/model/"], ["a/model", "b/model"]),
        (["/x/base", "runs/a/model", "/y/a/model"], ["base", "runs/a/model", "y/a/model"]),
        (["model", "a/model"], ["model", "a/model"]),
        (["a/b", "b/a", "c"], ["b", "a", "c"]),
    ],
)
def test_the_shortest_endings_that_differ(paths: list[str], names: list[str]) -> None:
    assert shortest_endings(paths) == names


def test_the_same_path_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"each path once, got runs/a 2 times"):
        shortest_endings(["runs/a", "b", "runs/a/"])
