"""Recipes from plain values, and with some fields changed."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from freezetrain.errors import UserError
from freezetrain.recipe.check import check
from freezetrain.recipe.mapping import build, change, check_types
from freezetrain.recipe.text_types import FieldsOf, LocalPath, Name


@dataclass
class Part:
    path: LocalPath
    share: float = 0.5

    def __post_init__(self) -> None:
        check(self.share < 1, "share", "below 1", self.share)


@dataclass
class Whole:
    part: Part
    maybe: Part | None = None
    parts: list[Part] = field(default_factory=list)
    named: dict[str, Part] = field(default_factory=dict)
    kind: Literal["top", "bottom"] = "top"
    count: int | None = None
    flag: bool = False
    every: bool | int | None = None
    numbers: list[float] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    languages: list[Name] = field(default_factory=list)
    some: "Annotated[dict[str, Any], FieldsOf(Whole)]" = field(default_factory=dict)


def test_values_of_every_type():
    values = {
        "part": {"path": "a", "share": 0},
        "maybe": {"path": "b"},
        "parts": [{"path": "c"}, {"path": "d", "share": 0.25}],
        "named": {"x": {"path": "e"}},
        "kind": "bottom",
        "count": 3,
        "flag": True,
        "every": 2,
        "numbers": [1, 0.5],
        "shares": {"en": 1},
        "anything": {"deep": {"deeper": [1, None]}},
    }
    whole = build(Whole, values, "here")
    assert whole == Whole(
        Part("a", 0.0),
        Part("b"),
        [Part("c"), Part("d", 0.25)],
        {"x": Part("e")},
        "bottom",
        3,
        True,
        2,
        [1.0, 0.5],
        {"en": 1.0},
        {"deep": {"deeper": [1, None]}},
    )
    assert build(Whole, {"part": {"path": "a"}, "every": False}, "here").every is False
    assert [type(number) for number in (whole.part.share, *whole.numbers)] == [float] * 3
    assert build(Whole, {"part": {"path": "a"}, "maybe": None, "count": None}, "here") == Whole(
        Part("a")
    )


def test_only_the_named_fields_change_also_inside_groups():
    whole = Whole(Part("a", 0.25), shares={"en": 1.0})
    new = change(whole, {"part": {"share": 0.75}, "shares": {"zh": 1.0}, "count": 2}, "here")
    assert new == Whole(Part("a", 0.75), shares={"zh": 1.0}, count=2)
    assert whole == Whole(Part("a", 0.25), shares={"en": 1.0})
    assert change(whole, {"maybe": {"path": "b"}}, "here").maybe == Part("b")
    assert change(new, {"count": None}, "here").count is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"prt": {}}, "here: unknown field 'prt' (did you mean 'part'"),
        ({"maybe": {"shre": 1}}, "here: unknown field 'maybe.shre' (did you mean 'maybe.share'"),
        ({"maybe": {}}, "here: missing maybe.path: give it"),
        ({"parts": [{}]}, "here: missing parts[0].path: give it"),
        ({"part": 5}, "here: part: expected a group of fields, as {name: value}, got 5"),
        ({"part": {"path": 1.0}}, "here: part.path: expected str, got 1.0; put it in quotes"),
        ({"part": {"path": ["a"]}}, "here: part.path: expected str, got ['a']"),
        ({"part": {"share": "x"}}, "here: part.share: expected float, got 'x'"),
        ({"part": {"share": 3}}, "here: share must be below 1, got 3.0"),
        ({"part": {"share": None}}, "here: part.share: expected float, got None"),
        ({"kind": "botom"}, "expected one of 'top', 'bottom', got 'botom' (did you mean 'bottom'"),
        ({"count": 2.0}, "here: count: expected int, got 2.0"),
        ({"count": True}, "here: count: expected int, got True"),
        ({"flag": "yes"}, "here: flag: expected bool, got 'yes'"),
        ({"every": "all"}, "here: every: expected bool or int, got 'all'"),
        ({"every": 1.0}, "here: every: expected bool or int, got 1.0"),
        ({"every": 2**63}, "here: every: expected a number of at most 64 bits"),
        ({"numbers": 1}, "here: numbers: expected a list, as [a, b], got 1"),
        ({"numbers": [1, "x"]}, "here: numbers[1]: expected float, got 'x'"),
        ({"shares": {"en": "x"}}, "here: shares.en: expected float, got 'x'"),
        ({"numbers": [1, math.nan]}, "here: numbers[1]: expected a finite number, got nan"),
        ({"part": {"share": -math.inf}}, "here: part.share: expected a finite number, got -inf"),
        ({"shares": {"en": 2**63}}, "here: shares.en: expected a number of at most 64 bits"),
        ({"count": -(2**63) - 1}, "here: count: expected a number of at most 64 bits"),
        (
            {"anything": {"a": [{"b": math.inf}]}},
            "here: anything.a[0].b: expected a finite number, got inf",
        ),
        ({"anything": {"a": {1: 2}}}, "here: a name in anything.a: expected str, got 1"),
        ({"anything": {"a": {2}}}, "here: anything.a: expected a value of JSON, got {2}"),
        ({"anything": {"a": "x\0"}}, "here: anything.a: expected text without control characters"),
        ({"part": {"path": "a\nb"}}, "here: part.path: expected text without control characters"),
        ({"part": {"path": ""}}, "here: part.path: expected a path, got an empty text"),
        ({"texts": ["x\ud800"]}, "here: texts[0]: expected text in UTF-8, got 'x\\ud800'"),
        ({"languages": ["a/b"]}, "here: languages[0]: expected a name that a file can bear"),
        ({"some": {"named": {"x": {"path": 1}}}}, "here: some.named.x.path: expected str, got 1"),
        ({"some": {"prt": 1}}, "here: unknown field 'some.prt' (did you mean 'some.part'"),
        ({"shares": {1: 0.5}}, "here: a name in shares: expected str, got 1; put it in quotes"),
    ],
)
def test_bad_values_are_one_sentence(changes, complaint):
    with pytest.raises(UserError) as error:
        change(Whole(Part("a")), changes, "here")
    assert complaint in str(error.value)


def test_the_first_field_that_must_be_given_is_named():
    with pytest.raises(UserError, match=r"here: missing part\.path: give it on the command line"):
        build(Whole, {}, "here")


def test_paths_that_a_user_wrote_are_expanded_wherever_they_are(monkeypatch):
    monkeypatch.setenv("HOME", "/home/$me")
    monkeypatch.setenv("DATA", "/data")
    written = {
        "part": {"path": "~/a"},
        "parts": [{"path": "$DATA/b"}],
        "named": {"x": {"path": "c-${DATA}-$"}},
        "some": {"part": {"path": "~"}},
        "texts": ["~/$DATA"],  # which is no path
        "languages": ["$DATA"],
    }
    values = check_types(Whole, written, expand=True)
    assert values == {
        "part": {"path": "/home/$me/a"},
        "parts": [{"path": "/data/b"}],
        "named": {"x": {"path": "c-/data-$"}},
        "some": {"part": {"path": "/home/$me"}},
        "texts": ["~/$DATA"],
        "languages": ["$DATA"],
    }
    assert check_types(Whole, values) == values  # once
