"""Checks of the values of a recipe, and names as names of files."""

import re
from collections.abc import Mapping

from freezetrain.errors import UserError

_LONGEST = 200  # characters of a value in a sentence

_LARGEST = {
    "float32": (2 - 2**-23) * 2.0**127,
    "bfloat16": (2 - 2**-7) * 2.0**127,
    "float16": 65504,
}


def check(condition: bool, name: str, expected: str, value: object) -> None:
    """UserError naming the field unless ``condition`` holds."""
    if not condition:
        raise UserError(f"{name} must be {expected}, got {shown(value)}; change it in the recipe")


def shown(value: object) -> str:
    """``value`` as a sentence names it: as Python writes it, cut where that is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def check_temperature(name: str, temperature: float, weights: Mapping[str, float]) -> None:
    """Above 0, and left out where weights say the shares."""
    check(temperature > 0, name, "above 0", temperature)
    alone = not weights or temperature == 1
    check(alone, name, "left out where weights are given", temperature)


def check_factor(name: str, factor: float, dtype: str) -> None:
    """Within what weights of the type ``dtype`` can be multiplied by."""
    largest = _LARGEST.get(dtype, _LARGEST["float32"])  # stored: only the files tell
    check(abs(factor) <= largest, name, f"at most {largest:.4g}, as {dtype} holds it", factor)


def check_shares(name: str, shares: Mapping[str, float]) -> None:
    """Shares are above 0 and sum to 1; none given is well too."""
    for key, share in shares.items():
        check(0 < share <= 1, f"{name}.{key}", "above 0 and at most 1", share)
    total = sum(shares.values())
    sums = not shares or abs(total - 1) < 1e-3
    check(sums, name, "shares that sum to 1", f"{dict(shares)}, which sum to {total:g}")


def check_repository(name: str, value: str | None) -> None:
    """OWNER/NAME, as the hub takes it; None is well too."""
    if value is None:
        return
    from huggingface_hub.utils import HFValidationError, validate_repo_id  # help does without it

    try:
        validate_repo_id(value)
        valid = value.count("/") == 1
    except HFValidationError:
        valid = False
    check(valid, name, "OWNER/NAME, of letters, digits and - _ . as the hub takes them", value)


def file_name(name: str) -> str:
    """Letters, digits and ``_ . + -`` of ``name``, all else as one hyphen: ``core-5``."""
    return re.sub(r"[^\w.+]+", "-", name).strip("-")
