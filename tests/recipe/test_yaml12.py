import re

import pytest
import yaml

from freezetrain.recipe.yaml12 import load


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[no, en, on, yes, off]", ["no", "en", "on", "yes", "off"]),
        ("[true, False]", [True, False]),
        ("[1e-3, 2E5, 1.5, .5, -3.0e+2, 7, 1.]", [1e-3, 2e5, 1.5, 0.5, -300.0, 7, 1.0]),
        ("2026-11-24", "2026-11-24"),
        ("{a: null, b: ~}", {"a": None, "b": None}),
        ("[1e, e3, 1.2.3]", ["1e", "e3", "1.2.3"]),
    ],
)
def test_values(text, value):
    assert load(text) == value
    assert [type(v) for v in load(text)] == [type(v) for v in value]


def test_pyyaml_itself_is_left_as_it_was():
    assert yaml.safe_load("no") is False


def test_no_python_objects():
    with pytest.raises(ValueError, match="could not determine a constructor for the tag"):
        load("!!python/object/apply:os.system [echo]")


def multiplied(*, levels: int, each: int) -> str:
    """Anchors, each of which holds the one before it several times."""
    lines = ["a0: &a0 x"]
    for level in range(levels):
        lines.append(f"a{level + 1}: &a{level + 1} [{', '.join([f'*a{level}'] * each)}]")
    return "\n".join(lines)


TOO_MUCH = {
    "nested": ("[" * 20_000, "values nested more than 100 deep"),
    "nested as JSON": ('{"a":' * 101 + "1" + "}" * 101, "values nested more than 100 deep"),
    "nested in lines": ("\n".join(" " * n + "a:" for n in range(110)), "nested more than 100 deep"),
    "anchors": (multiplied(levels=9, each=9), "more than 100,000 values where its anchors are"),
    "anchors one within another": (
        multiplied(levels=101, each=1),
        "nested more than 100 deep where its anchors are replaced",
    ),
    "anchors that are merged": (
        multiplied(levels=9, each=9).replace("[", "{<<: [").replace("]", "]}"),
        "more than 100,000 values where its anchors are",
    ),
    "an anchor in itself": ("a: &a [*a]", "an anchor that holds itself (line 1, column 8)"),
    "characters": ("#" * (2**20 + 1), "more than 1,048,576 characters"),
    "a large number": ("a: 9223372036854775808", "a number beyond 64 bits (line 1, column 4)"),
    "many digits": ("9" * 5000, "a number beyond 64 bits"),
    "hexadecimal": ("-0x8000000000000001", "a number beyond 64 bits"),
    "a name twice": ("a: 1\nb: 2\n'a': 3", "the name 'a' twice (line 3, column 1)"),
    "no value of its tag": ("!!int x", "it is not YAML: "),
    "no truth value": ("!!bool x", "it is not YAML: "),
    "no list at its end": ("[a", "while parsing a flow sequence: expected ',' or ']'"),
    "a sign that is none": ("a: \x00", "it is not YAML: "),
}


@pytest.mark.parametrize(("text", "complaint"), TOO_MUCH.values(), ids=TOO_MUCH)
def test_more_than_a_recipe_may_be(text, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)) as error:
        load(text)
    assert "\n" not in str(error.value)


@pytest.mark.exhaustive
def test_more_values_than_a_recipe_may_have():
    with pytest.raises(ValueError, match="it holds more than 100,000 values"):
        load("[" + "x," * 100_001 + "]")


def test_anchors_within_bounds():
    assert load("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": [{"x": 1, "y": 2}] * 2,
    }
    assert load("[9223372036854775807, -9223372036854775808]") == [2**63 - 1, -(2**63)]
