"""What several parts of the paper's page read from its results."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any


def single(found: Mapping[str, Any]) -> bool:
    """Whether single weights were changed, and not several at once."""
    return all(one["entries"] == 1 for one in found["weights"])


def changed(found: Mapping[str, Any]) -> str:
    """What was done to each weight: ``set to zero``, ``multiplied by 4``."""
    if found["change"] == "scale":
        return f"multiplied by {found['by']:g}"
    return {"zero": "set to zero", "reinitialize": "drawn anew"}[found["change"]]


def changed_what(found: Mapping[str, Any]) -> str:
    """``Single weights set to zero``"""
    if not single(found):
        return f"Whole dimensions {changed(found)}"
    recurring = any(one["dimension"] is not None for one in found["weights"])
    return f"Single weights{' of dimensions that recur' if recurring else ''} {changed(found)}"


def weight_name(weight: Mapping[str, Any]) -> str:
    """``model.norm.weight[3]``; of several weights together, as they are called."""
    if weight["index"] is None:
        return str(weight["what"])
    return f"{weight['name']}[{', '.join(map(str, weight['index']))}]"


def core_of(dimensions: Mapping[str, Any]) -> str:
    """The region that is shown: the core, or the first where none is called so."""
    regions = dimensions["regions"]
    return "core" if "core" in regions else next(iter(regions))


def mean_share(by_layer: Mapping[str, Mapping[str, float | None]], kind: str) -> float:
    """Mean over the layers that have such a matrix; 0 where none has."""
    known = [share for layer in by_layer.values() if (share := layer.get(kind)) is not None]
    return fmean(known) if known else 0.0


KINDS = ("top", "random", "bottom")


def of_ratio(summary: Sequence[Mapping[str, Any]], ratio: float | None) -> dict[str, Any]:
    """What was removed at ``ratio``, by kind; None: the regions given as files, by their names."""
    found = {_name(one): one for one in summary if one["ratio"] == ratio}
    order = [kind for kind in KINDS if kind in found] + [k for k in found if k not in KINDS]
    return {kind: found[kind] for kind in order}


def _name(one: Mapping[str, Any]) -> str:
    if one["kind"] == "file":
        return one["regions"][0]
    return one["kind"] if one["ratio"] is not None else f"random like {one['like']}"


def ratios_of(summary: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """All ratios, ascending; then None where regions were given as files."""
    known = sorted({one["ratio"] for one in summary if one["ratio"] is not None})
    return [*known, *([None] if any(one["ratio"] is None for one in summary) else [])]
