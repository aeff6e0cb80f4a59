"""The optimizers that a recipe calls by a short name, and what each of them can be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.check import check, shown

_FLAT = "under DeepSpeed ranks step flat parts of all weights laid end to end"

_GIVEN_BY = {
    "params": "the model",
    "lr": "optimization.learning_rate",
    "betas": "optimization.beta1 and beta2",
    "weight_decay": "optimization.weight_decay",
}


@dataclass(frozen=True)
class Known:
    """What an optimizer needs and does."""

    betas: bool = True
    """Whether it has the two of AdamW."""
    extra: str | None = None
    """The extra of freezetrain that brings its package, where that does not come along."""
    not_under: Mapping[str, str] = field(default_factory=dict)
    """Beginning of an engine's kind -> why it cannot run there."""


OPTIMIZERS = {
    "adamw": Known(),
    "adamw-8bit": Known(
        extra="8bit",
        not_under={"fsdp2": "bitsandbytes does not step tensors that FSDP2 has split"},
    ),
    "adafactor": Known(
        betas=False,
        not_under={
            "zero": f"it sums over rows and columns, and {_FLAT}",
            "fsdp2": "it sums over rows and columns, which FSDP2 has split",
        },
    ),
    "lion": Known(extra="lion"),
    "muon": Known(not_under={"zero": f"it takes whole matrices, and {_FLAT}"}),
}


def is_import_path(name: str) -> bool:
    """Whether ``name`` is that of a class, as ``torch.optim.NAdam``."""
    return "." in name


def given_elsewhere(name: str) -> dict[str, str]:
    """Arguments of the optimizer ``name`` that are not in optimizer_args -> what gives them."""
    # A class may have three betas.
    own = ("betas",) if is_import_path(name) else ()
    return {argument: source for argument, source in _GIVEN_BY.items() if argument not in own}


def check_optimizer(name: str, arguments: Mapping[str, Any]) -> None:
    """UserError for a name that is none, and for arguments that other fields give."""
    words = all(part.isidentifier() for part in name.split("."))
    if name not in OPTIMIZERS and not (is_import_path(name) and words):
        raise UserError(
            f"optimizer must be one of {', '.join(OPTIMIZERS)}, or the import path of a class as "
            f"torch.optim.NAdam, got {shown(name)}{near_misses(name, OPTIMIZERS)}; change it in "
            "the recipe"
        )
    for argument, source in given_elsewhere(name).items():
        expected = f"left out: it follows from {source}"
        value = arguments.get(argument)
        check(argument not in arguments, f"optimizer_args.{argument}", expected, value)


def check_engine(name: str, kind: str) -> None:
    """UserError where an optimizer with a short name cannot run under an engine of this kind."""
    for beginning, reason in OPTIMIZERS[name].not_under.items() if name in OPTIMIZERS else ():
        if kind.startswith(beginning):
            others = [
                other
                for other, known in OPTIMIZERS.items()
                if not any(kind.startswith(each) for each in known.not_under)
            ]
            raise UserError(
                f"optimization.optimizer {name} cannot run under {kind}: {reason}; use "
                f"{' or '.join(others)} there, or another engine"
            )
