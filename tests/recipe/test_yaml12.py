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
    with pytest.raises(yaml.YAMLError):
        load("!!python/object/apply:os.system [echo]")
