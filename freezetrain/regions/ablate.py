"""See what a region does: change its entries for a while, then put them back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from freezetrain.errors import UserError
from freezetrain.regions.region import Region
from freezetrain.regions.reinitialize import fresh_values


def ablate(model: nn.Module, region: Region) -> AbstractContextManager[None]:
    """Zero the region's entries in ``model`` while the ``with`` block runs.

    ``with ablate(model, region): evaluate(model)``; see :func:`perturb` for everything else.
    """
    return perturb(model, region, value=0.0)


@contextmanager
def perturb(
    model: nn.Module,
    region: Region,
    *,
    scale: float | None = None,
    value: float | None = None,
    reinitialize: int | None = None,
) -> Iterator[None]:
    """Change the region's entries while the block runs, in one of three ways.

    ``scale`` multiplies them, ``value`` replaces them, and ``reinitialize``, a seed, draws them
    anew as a model starts out, see :func:`.reinitialize.fresh_values`.

    Afterwards, also after an exception, each entry gets its old value back bit for bit (minus
    zero and NaN included). What the block itself writes to these entries is lost. Contexts nest;
    the inner one must end first. A tensor that has two names (a tied head) is perturbed once.
    Memory: a copy of the region's values.

    Raises:
        UserError: not exactly one of ``scale``, ``value`` and ``reinitialize``; a region that does
            not fit the model.
    """
    if (scale, value, reinitialize).count(None) != 2:
        raise UserError(
            "expected one of scale, value and reinitialize to perturb with, got "
            f"{scale=}, {value=}, {reinitialize=}"
        )
    saved = []
    try:
        for target in region.resolve(model):
            values = target.entries.read(target.parameter)
            saved.append((target, values))
            if scale is not None:
                target.entries.write(target.parameter, values * scale)
            elif value is not None:
                target.entries.fill(target.parameter, value)
            elif reinitialize is not None:
                fresh = fresh_values(model, target, reinitialize)
                target.entries.write(target.parameter, fresh)
        yield
    finally:
        for target, values in saved:
            target.entries.write(target.parameter, values)
