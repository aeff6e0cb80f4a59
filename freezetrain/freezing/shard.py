"""The part of a parameter's frozen entries that one tensor of this rank holds."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from freezetrain.freezing.digest import value_digest
from freezetrain.regions import Entries, Resolved
from freezetrain.regions.flat_range import count_before, narrow


@dataclass(frozen=True, eq=False)
class Shard:
    """Frozen entries of one parameter within ``owner``, a tensor of this rank.

    ``owner`` is the parameter, its DTensor, or a flat tensor in which an engine has laid many
    parameters one after the other, such as ZeRO's fp32 partition. What is read and written is
    ``of(owner)``; the same part of its gradient is ``of(owner.grad)``.
    """

    name: str
    """The parameter's full name in the model."""
    key: str
    """The parameter's name in the region."""
    number: int
    """The parameter's place among those of the region, for digests."""
    shape: tuple[int, ...]
    """Of the whole parameter."""
    owner: Tensor
    entries: Entries
    """Within ``of(owner)``, whose shape they have."""
    span: tuple[int, int] | None = None
    """First element and number of elements in a flat owner; None: all of it."""
    first: int = 0
    """Flat index, in the whole parameter, of the first element of ``of(owner)``."""
    before: int = 0
    """Frozen entries of the parameter that lie before ``first``."""

    @classmethod
    def whole(cls, resolved: Resolved, number: int) -> "Shard":
        """All of a parameter that no engine has split."""
        entries = resolved.entries
        return cls(resolved.name, resolved.key, number, entries.shape, resolved.parameter, entries)

    @classmethod
    def part(
        cls,
        resolved: Resolved,
        number: int,
        owner: Tensor,
        first: int,
        shape: tuple[int, ...],
        start: int | None = None,
    ) -> "Shard":
        """The flat elements from ``first`` on that lie in ``owner`` from ``start`` on.

        ``shape`` is that of the part in the owner: one dimension, unless ``start`` is None.
        """
        length = int(torch.Size(shape).numel())
        entries = narrow(resolved.entries, first, length)
        if len(shape) != 1:
            entries = Entries.from_mask(entries.mask().view(shape))
        return cls(
            resolved.name,
            resolved.key,
            number,
            resolved.entries.shape,
            owner,
            entries,
            None if start is None else (start, length),
            first,
            count_before(resolved.entries, first),
        )

    def held_by(self, owner: Tensor, start: int) -> "Shard":
        """The same part of the parameter, with the same entries, in a flat ``owner``."""
        return replace(self, owner=owner, span=(start, self.entries.numel))

    @torch.no_grad()
    def of(self, tensor: Tensor) -> Tensor:
        """The part of ``tensor``, laid out like ``owner``, that ``entries`` are about: a view."""
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()
        return tensor if self.span is None else tensor.view(-1).narrow(0, *self.span)

    def gradient(self) -> Tensor:
        """The same part of the owner's gradient, which must exist."""
        assert self.owner.grad is not None
        return self.of(self.owner.grad)

    def read(self) -> Tensor:
        """The frozen values [count], in the order of flat indices."""
        return self.entries.read(self.of(self.owner))

    def write(self, values: Tensor) -> None:
        """Set the frozen values [count]; rounded to the owner's dtype."""
        here = self.of(self.owner)
        self.entries.write(here, values.to(here.device, here.dtype))

    def digest(self, dtype: torch.dtype | None = None) -> Tensor:
        """Digest of the frozen values, first rounded to ``dtype`` if one is given."""
        values = self.read()
        return value_digest(values if dtype is None else values.to(dtype), self.number, self.before)

    def index_of(self, place: int) -> int:
        """Flat index, in the whole parameter, of the frozen entry at ``place`` in :meth:`read`."""
        return self.first + int(self.entries.indices()[place])
