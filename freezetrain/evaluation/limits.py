"""How much forgetting a run may cost, and what is done where it costs more."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from freezetrain.errors import UserError, near_misses

Action = Literal["warn", "stop", "roll_back", "select"]

Measure = Literal["relative", "perplexity", "nats_per_byte"]

TOGETHER = ("mean", "worst")
"""Names of limits that are not of one language."""


@dataclass
class Braking:
    """Limits of what held-out languages may lose, looked at in each evaluation of the watch."""

    limits: dict[str, float] = field(default_factory=dict)
    """Largest loss of a held-out language, by its name, of their mean (mean), or of each of them
    (worst), in the unit of measure: {es: 0.05, mean: 0.02}."""
    action: Action = "stop"
    """Where a limit is exceeded. warn: say so, and go on. stop: end training there. roll_back: end
    training, with the model of the last evaluation within the limits. select: go on, and at the end
    take the model of the evaluation within the limits with the greatest gain of the target; without
    a target, of the last one."""
    measure: Measure = "relative"
    """relative: rise of the NLL per byte, as a share of the base's. perplexity: rise of the
    perplexity, as a share of the base's. nats_per_byte: rise of the NLL per byte."""
    beyond_noise: bool = False
    """A limit counts as exceeded only where the whole 95% interval of the loss lies above it."""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("action", self.action, get_args(Action)),
            ("measure", self.measure, get_args(Measure)),
        ):
            if value not in known:
                raise UserError(
                    f"the brake's {name} must be one of {', '.join(known)}, got "
                    f"{value!r}{near_misses(value, known)}"
                )
        if not isinstance(self.limits, Mapping) or not self.limits:
            raise UserError(
                f"the brake's limits must be one or more, of a held-out language, mean or worst, "
                f"got {self.limits!r}; give one, or leave the brake out"
            )
        for name, limit in self.limits.items():
            if not isinstance(name, str):
                raise UserError(
                    f"the brake's limits are named by language, got {name!r}; put it in quotes if "
                    "a language is called so"
                )
            if not (math.isfinite(limit) and limit > 0):
                raise UserError(
                    f"the brake's limit of {name!r} must be a number above 0, got {limit!r}; give "
                    "what may be lost, as 0.05 for 5%"
                )
        if self.beyond_noise and "mean" in self.limits and self.measure == "perplexity":
            raise UserError(
                "the brake's beyond_noise needs an interval of the mean, which is not known in "
                "perplexity; give the measure relative or nats_per_byte, or limit the worst"
            )

    def check_names(self, languages: Collection[str], trained: Collection[str]) -> None:
        """Raise ``UserError`` for a limit of what is not held out.

        ``languages``: those that are evaluated; ``trained``: those that are trained on.
        """
        held_out = [language for language in languages if language not in trained]
        for name in self.limits:
            if name in TOGETHER and name in languages:
                raise UserError(
                    f"a language is called {name!r}, which would have the limit of all together; "
                    "give the language another name"
                )
            if name not in held_out and name not in TOGETHER:
                which = "which is trained on, is" if name in trained else "which is"
                raise UserError(
                    f"the brake limits {name!r}, {which} not one of the held-out languages "
                    f"{', '.join(held_out)}{near_misses(name, [*held_out, *TOGETHER])}; give one "
                    "of them, mean or worst"
                )

    @property
    def goes_back(self) -> bool:
        """Whether the model may be one of before the end, so that weights are kept on the way."""
        return self.action in ("roll_back", "select")
