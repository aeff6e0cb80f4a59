"""YAML as of version 1.2, in which `no` is Norwegian and `1e-3` is a number."""

import re
from typing import Any

import yaml


class Yaml12Loader(yaml.SafeLoader):
    """PyYAML's safe loader reads YAML 1.1, where `no`, `on` and `yes` are truth values."""


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
    """Read one document."""
    return yaml.load(text, Loader=Yaml12Loader)  # a subclass of the safe loader


def dump(value: Any) -> str:
    """Write one document, in the order of its keys; :func:`load` gives ``value`` back."""
    return yaml.dump(value, Dumper=Yaml12Dumper, sort_keys=False, allow_unicode=True)
