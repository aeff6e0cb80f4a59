"""The packages that each extra brings, and the error for one that is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from freezetrain.errors import UserError

_EVALUATION = ("rich", "torchmetrics")
_HF = ("accelerate", "transformers")
_LIGHTNING = ("filelock", "lightning")

EXTRAS = {
    "evaluation": _EVALUATION,
    "hf": _HF,
    "lightning": _LIGHTNING,
    "train": (
        *_EVALUATION,
        *_HF,
        *_LIGHTNING,
        "datasets",
        "huggingface_hub",
        "jinja2",
        "matplotlib",
        "tensorboard",
        "tokenizers",
        "yaml",
        "zstandard",
    ),
    "deepspeed": ("deepspeed",),
    "benchmarks": ("lm_eval",),
    "generation": ("langcodes", "py3langid"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "lora": ("peft",),
    "8bit": ("bitsandbytes",),
    "lion": ("lion_pytorch",),
}
"""Extra -> the names under which its packages are imported, but for those of the extras in it.

``train`` is the exception: what the command line lacks is named at once.
"""


class MissingPackageError(UserError, ModuleNotFoundError):
    """A package that an extra brings is not installed, or cannot be imported."""


def is_there(package: str) -> bool:
    """Whether a package can be found; a folder of its name, as wandb leaves one, is none."""
    found = find_spec(package)
    return found is not None and found.origin is not None


def require(extra: str, what: str, otherwise: str = "") -> None:
    """MissingPackageError unless all packages of ``extra`` are installed.

    ``what`` needs them; ``otherwise``: what else a user can do, as ``", or use adamw"``.
    """
    missing = [package for package in EXTRAS[extra] if not is_there(package)]
    if not missing:
        return
    *others, last = missing
    if others:
        said = f"the packages {', '.join(others)} and {last}, which are not installed; install them"
    else:
        said = f"the package {last}, which is not installed; install it"
    raise MissingPackageError(
        f"{what} needs {said} with pip install 'freezetrain[{extra}]'{otherwise}", name=missing[0]
    )


@contextmanager
def imported_for(extra: str, what: str, otherwise: str = "") -> Iterator[None]:
    """Imports of what ``extra`` brings: MissingPackageError where it is missing or broken."""
    require(extra, what, otherwise)
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(
            f"{what} needs what 'freezetrain[{extra}]' brings, which cannot be imported ({error}); "
            f"install it with pip install 'freezetrain[{extra}]'{otherwise}",
            name=error.name,
        ) from error
