"""Set expressions against Python's own sets and Python's own precedence."""

import itertools
import random

import pytest

from freezetrain.errors import UserError
from freezetrain.regions import Base, Entries, Expression, Region

SETS = {
    name: {n for n in range(64) if random.Random(f"{name}{n}").random() < 0.5} for name in "abcde"
}


def region(numbers: set[int]) -> Region:
    return Region({"w": Entries.from_indices((8, 8), sorted(numbers))}, Base("m", None, "f00"))


REGIONS = {name: region(numbers) for name, numbers in SETS.items()}


def value(text: str) -> Region:
    return Expression(text).region(REGIONS.__getitem__)


@pytest.mark.parametrize("operators", list(itertools.product("|&-^", repeat=3)))
def test_operators_rank_as_those_of_python(operators: tuple[str, str, str]) -> None:
    first, second, third = operators
    for text in (
        f"a {first} b {second} c {third} d",
        f"a {first} (b {second} c) {third} d",
        f"a{first}(b{second}(c {third} d))",
        f"(a {first} b) {second} (c {third} a)",
    ):
        assert value(text) == region(eval(text, {}, dict(SETS))), text


def test_each_region_is_asked_for_once():
    asked = []

    def regions(name: str) -> Region:
        asked.append(name)
        return REGIONS[name]

    assert Expression(" a ").region(regions) == REGIONS["a"]
    assert Expression("((a)) ^\n a").region(regions).count == 0
    assert asked == ["a", "a"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("c | a & c", ["c", "a"]),
        ("""core-"pt-BR" | 'a (1)' - zh.v2_x""", ["core", "pt-BR", "a (1)", "zh.v2_x"]),
        ("中文-zh | ﬁ", ["中文", "zh", "ﬁ"]),  # which Python would take for fi
        ("is - or | 3 & in", ["is", "or", "3", "in"]),  # Icelandic, Odia
        ("a+b@5 | \"x\" - 'x x'", ["a+b@5", "x", "x x"]),
    ],
)
def test_names_are_plain_or_in_quotes(text: str, names: list[str]) -> None:
    assert Expression(text).names == names


def test_says_how_the_region_was_made() -> None:
    combined = value("a - (b | c)")
    assert combined.base == Base("m", None, "f00")
    assert combined.made["expression"] == "a - (b | c)"
    assert list(combined.made["regions"]) == ["a", "b", "c"]
    assert combined.made["regions"]["b"]["digest"] == REGIONS["b"].digest


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("", 1), ("a -", 4), ("a b", 3), ("(a | b", 1), ("a | b)", 6), ("a & & b", 5), ("- a", 1),
        ("  a - -b", 7), ("a(b)", 1), ("()", 1), ("a * b", 3), ("a - 'b", 5), ("a, b", 2),
        ('a"b"', 3), ("''a", 1),
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused_with_its_place(text: str, character: int) -> None:
    with pytest.raises(UserError, match=rf"expected names of regions.* character {character}\b"):
        Expression(text)


@pytest.mark.parametrize(
    ("text", "shorter"),
    [
        ("|".join(["a"] * 101), "|".join(["a"] * 100)),
        ("(" * 101 + "a" + ")" * 101, "(" * 100 + "a" + ")" * 100),
        ("-" * 9_000 + "a", "a"),
        (" " * 10**7 + "a", " " * 9_000 + "a"),
    ],
    ids=["names", "parentheses", "signs", "characters"],
)
def test_what_is_too_long_is_refused(text: str, shorter: str) -> None:
    complaint = "at most 10,000 characters and 100 names, operators and parentheses"
    with pytest.raises(UserError, match=complaint):
        Expression(text)
    assert Expression(shorter)


def test_unknown_names_are_named_with_their_place_and_near_misses() -> None:
    Expression("core - a").check(["a", "core"])
    with pytest.raises(
        UserError,
        match=r"at character 8 of 'core - cora', got 'cora' \(did you mean 'core'\?\); there are "
        "core, zh",
    ):
        Expression("core - cora").check(["core", "zh"])
    with pytest.raises(UserError, match=r"got 'zh'; there are zh-Hans; put a name .* in quotes"):
        Expression("zh-Hans").check(["zh-Hans"])
