"""YAML as of version 1.2, in which `no` is Norwegian and `1e-3` is a number; within bounds."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from freezetrain.user_files import MAX_DEPTH, reading

MAX_CHARACTERS = 2**20
"""Of one document."""

MAX_VALUES = 100_000
"""In one document: words, numbers, lists and groups, each as often as anchors repeat it."""

_INT64 = range(-(2**63), 2**63)

_MERGE = "tag:yaml.org,2002:merge"


class BoundError(yaml.MarkedYAMLError):
    """The document is YAML, but more than a recipe may be."""

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem=problem, problem_mark=mark)


class Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader reads YAML 1.1, where `no`, `on` and `yes` are truth values.

    It also takes the last of several values of one name, and follows anchors without end. Here
    both are errors, found while the document's nodes are put together, before any value is made.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._open = 0  # nodes that the next one lies within
        self._values = 0
        # Of each whole node, as its anchors are replaced: how many values, and how deep.
        self._extents: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        self._open += 1
        self._values += 1
        if self._open > MAX_DEPTH:
            raise BoundError(f"values nested more than {MAX_DEPTH} deep", mark)
        if self._values > MAX_VALUES:
            raise BoundError(f"more than {MAX_VALUES:,} values", mark)
        node = super().compose_node(parent, index)
        self._open -= 1
        assert node is not None
        if alias and node not in self._extents:
            raise BoundError("an anchor that holds itself", mark)
        if not alias:
            self._extents[node] = self._extent(node)
        return node

    def _extent(self, node: yaml.Node) -> tuple[int, int]:
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            _refuse_repeated(node)
            children = [child for pair in node.value for child in pair]
        extents = [self._extents[child] for child in children]
        values = 1 + sum(count for count, _ in extents)
        depth = 1 + max((deep for _, deep in extents), default=0)
        if values > MAX_VALUES:
            problem = f"more than {MAX_VALUES:,} values where its anchors are replaced"
            raise BoundError(problem, node.start_mark)
        if depth > MAX_DEPTH:
            problem = f"values nested more than {MAX_DEPTH} deep where its anchors are replaced"
            raise BoundError(problem, node.start_mark)
        return values, depth

    def construct_yaml_int(self, node: Any) -> int:
        # Python refuses to read numbers of thousands of digits, with an error of its own.
        number = super().construct_yaml_int(node) if len(node.value) <= 80 else 2**64
        if number not in _INT64:
            raise BoundError("a number beyond 64 bits", node.start_mark)
        return int(number)


Yaml12Loader.add_constructor("tag:yaml.org,2002:int", Yaml12Loader.construct_yaml_int)


def _refuse_repeated(node: yaml.MappingNode) -> None:
    """BoundError for a name that has two values."""
    seen = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
            continue
        if (key.tag, key.value) in seen:
            raise BoundError(f"the name {key.value[:80]!r} twice", key.start_mark)
        seen.add((key.tag, key.value))


# Own copies: the tables of the parent class must stay as they are.
Yaml12Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] not in ("bool", "float", "timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)

_FLOAT = (
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)
Yaml12Loader.add_implicit_resolver(*_FLOAT)


class Yaml12Dumper(yaml.SafeDumper):
    """Quotes words that either version of YAML reads as something else, such as no and 1e5."""


Yaml12Dumper.add_implicit_resolver(*_FLOAT)


def load(text: str) -> Any:
    """Read one document; ValueError, one sentence without a full stop, for what is none.

    At most ``MAX_CHARACTERS`` and ``MAX_VALUES``, nested ``MAX_DEPTH`` deep, numbers of 64 bits,
    each name once in its group.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has more than {MAX_CHARACTERS:,} characters")
    try:
        return yaml.load(text, Loader=Yaml12Loader)  # a subclass of the safe loader
    except BoundError as error:
        raise ValueError(f"it holds {error.problem}{_place(error)}") from error
    except yaml.MarkedYAMLError as error:
        said = ": ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"it is not YAML: {said}{_place(error)}") from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        # A value that is not of its tag, as `!!int x`; or a sign that YAML does not have.
        raise ValueError(f"it is not YAML: {' '.join(str(error).split())}") from error


def _place(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"


def read(path: str | os.PathLike[str], what: str, remedy: str) -> Any:
    """The document in a file; UserError as :func:`freezetrain.user_files.reading`."""
    with reading(what, path, remedy), Path(path).open(encoding="utf-8") as file:
        return load(file.read(MAX_CHARACTERS + 1))


def dump(value: Any) -> str:
    """Write one document, in the order of its keys; :func:`load` gives ``value`` back."""
    return yaml.dump(value, Dumper=Yaml12Dumper, sort_keys=False, allow_unicode=True)
