"""Dataclasses as JSON and back."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from made_paper import make_paper

from freezetrain.evaluation import Figures
from freezetrain.paper.claims import paper_claims
from freezetrain.paper.results import PaperResults
from freezetrain.typed_json import KEY, from_json, require_types, to_json


@dataclass
class Inner:
    value: float | None
    kind: Literal["a", "b"] = "a"


@dataclass
class Outer:
    layers: dict[int, list[Inner]]
    figures: dict[str, Figures]
    with_space: Inner | None = field(default=None, metadata={KEY: "with space"})


def test_nested_objects_come_back():
    outer = Outer({3: [Inner(0.5), Inner(None, "b")]}, {"en": Figures(20.0, 10, 30)}, Inner(1.0))
    content = json.loads(json.dumps(to_json(outer)))
    assert content["layers"] == {"3": [{"value": 0.5, "kind": "a"}, {"value": None, "kind": "b"}]}
    assert content["with space"] == {"value": 1.0, "kind": "a"}
    assert content["figures"]["en"]["perplexity"] == pytest.approx(math.exp(2))
    assert from_json(Outer, content) == outer


@pytest.mark.parametrize(
    ("value", "hint", "complaint"),
    [
        (Inner("x"), Inner, "it.value must be of type float, got 'x'"),
        (Inner(True), Inner, "it.value must be of type float, got True"),
        (Inner(1.0, "c"), Inner, "it.kind must be one of 'a', 'b'"),
        (Inner(math.inf), Inner, "it.value must be a finite number within 64 bits"),
        (Inner(10**400), Inner, "it.value must be a finite number within 64 bits"),
        (Outer({1: [Inner(None), 5]}, {}), Outer, "it.layers.1.2 must be of type Inner, got 5"),
        (Outer({"1": []}, {}), Outer, "the keys of it.layers must be of type int, got '1'"),
        ((1.0,), tuple[float, float], "it must have 2 items, got 1"),
    ],
)
def test_values_of_another_type_are_named_by_their_place(value, hint, complaint):
    with pytest.raises(ValueError, match=complaint):
        require_types(value, hint, "it")


def test_values_of_their_types_pass():
    require_types(Outer({3: [Inner(1), Inner(None)]}, {"en": Figures(20, 10, 30)}), Outer, "it")
    require_types({"a": (1, 2.5)}, dict[str, tuple[float, float] | None], "it")


def test_an_infinite_number_is_not_known():
    assert to_json([1.0, math.inf]) == [1.0, None]


@pytest.mark.parametrize("content", [{"layers": {}}, {"layers": {"a": []}, "figures": {}}, 3, None])
def test_content_of_another_kind(content):
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        from_json(Outer, content)


def test_results_of_the_paper_come_back():
    results = make_paper(layers=2)
    results.claims = paper_claims(results)
    assert from_json(PaperResults, json.loads(json.dumps(to_json(results)))) == results


def test_results_that_an_earlier_version_left_are_read():
    path = Path(__file__).parents[1] / "docs" / "paper" / "results.json"
    results = from_json(PaperResults, json.loads(path.read_text(encoding="utf-8")))
    assert results.overlap.whole_model.names[0] == "core"
    assert len(results.removed) == len(results.settings["ratios"])
