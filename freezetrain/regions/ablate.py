"""See what a region does: zero, scale or replace its entries for a while, then put them back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn

from freezetrain.errors import UserError
from freezetrain.regions.region import Region


def ablate(model: nn.Module, region: Region) -> AbstractContextManager[None]:
    """Zero the region's entries in ``model`` while the ``with`` block runs.

    ``with ablate(model, region): evaluate(model)``; see :func:`perturb` for everything else.
    """
    return perturb(model, region, value=0.0)


@contextmanager
def perturb(
    model: nn.Module, region: Region, *, scale: float | None = None, value: float | None = None
) -> Iterator[None]:
    """Multiply the region's entries by ``scale``, or set them to ``value``, while the block runs.

    Afterwards, also after an exception, each entry gets its old value back bit for bit (minus
    zero and NaN included). What the block itself writes to these entries is lost. Contexts nest;
    the inner one must end first. A tensor that has two names (a tied head) is perturbed once.
    Memory: a copy of the region's values.

    Raises:
        UserError: not exactly one of ``scale`` and ``value``; a region that does not fit the
            model.
    """
    if (scale is None) == (value is None):
        raise UserError(f"expected either scale or value to perturb, got {scale=} and {value=}")
    saved = []
    try:
        for target in region.resolve(model):
            values = target.entries.read(target.parameter)
            saved.append((target, values))
            if scale is not None:
                target.entries.write(target.parameter, values * scale)
            elif value is not None:
                target.entries.fill(target.parameter, value)
        yield
    finally:
        for target, values in saved:
            target.entries.write(target.parameter, values)
