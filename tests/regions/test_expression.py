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


def test_a_name_alone_and_the_same_name_twice() -> None:
    asked = []

    def regions(name: str) -> Region:
        asked.append(name)
        return REGIONS[name]

    assert Expression(" a ").region(regions) == REGIONS["a"]
    assert Expression("((a)) ^ a").region(regions).count == 0
    assert asked == ["a", "a"]
    assert Expression("c | a & c").names == ["c", "a"]


def test_names_with_other_signs_stand_in_quotes() -> None:
    assert Expression("""core-"pt-BR" | 'a (1)' - zh.v2_x""").names == [
        "core", "pt-BR", "a (1)", "zh.v2_x",
    ]  # fmt: skip
    assert Expression("中文-zh").names == ["中文", "zh"]


def test_says_how_the_region_was_made() -> None:
    found = value("a - (b | c)")
    assert found.base == Base("m", None, "f00")
    assert found.made["expression"] == "a - (b | c)"
    assert list(found.made["regions"]) == ["a", "b", "c"]
    assert found.made["regions"]["b"]["digest"] == REGIONS["b"].digest


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", r"expected the name of a region or \( at character 1 of '', got its end"),
        ("a -", r"the name of a region or \( at character 4 of 'a -', got its end"),
        ("a b", r"an operator \(\| & - \^\) or the end at character 3 of 'a b', got 'b'"),
        ("(a | b", r"an operator \(\| & - \^\) or \) at character 7 of .*, got its end"),
        ("a | b)", r"or the end at character 6 of .*, got '\)'"),
        ("a & & b", r"name of a region or \( at character 5 of .*, got '&'"),
        ("- a", r"name of a region or \( at character 1 of '- a', got '-'"),
        ("a * b", r"got '\*' at character 3 of 'a \* b'; put a name with other signs in quotes"),
        ("a - 'b", r"""got "'" at character 5 of .*quotes"""),
    ],
)
def test_what_is_no_expression(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        Expression(text)


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
