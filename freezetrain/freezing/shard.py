"""The frozen entries that one tensor of this rank holds, and a digest of their values."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from freezetrain.regions import Entries, Resolved
from freezetrain.regions.entries import count_before, narrow

_CHUNK = 1 << 20  # values at a time, so that the int64 temporaries stay small

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, odd, as a signed integer

# Finalizer of SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators"
# (OOPSLA 2014), in Stafford's variant 13.
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


def value_digest(values: Tensor, number: int, before: int) -> Tensor:
    """Digest of ``values`` [n], a part of one parameter's frozen values: an int64 scalar.

    The sum over values of a 64-bit mix of the value's bits and its place, modulo 2^64. The place
    is the parameter's ``number`` in the region and the value's among all frozen ones of that
    parameter, of which ``before`` come earlier. So digests of parts add up to the digest of the
    whole, wherever the parts lie. Values are widened to float64, which is exact: the digest does
    not depend on the dtype that holds them. One changed value goes unseen with probability 2^-64;
    it is no defence against forgery.
    """
    if values.is_complex():
        values, before = torch.view_as_real(values).flatten(), 2 * before
    total = torch.zeros((), dtype=torch.int64, device=values.device)
    for start in range(0, len(values), _CHUNK):
        part = values[start : start + _CHUNK]
        first = before + start + (number << 40)
        place = torch.arange(first, first + len(part), device=part.device)
        total += _mix(part.double().view(torch.int64) + place * _GOLDEN).sum()
    return total


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _FIRST
    bits = (bits ^ _shift(bits, 27)) * _SECOND
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def combined(digests: list[int]) -> int:
    """Sum modulo 2^64 as a signed integer, as torch wraps it."""
    total = sum(digests) & (2**64 - 1)
    return total - 2**64 if total >= 2**63 else total


def as_hex(digest: int) -> str:
    """16 hexadecimal digits."""
    return f"{digest & (2**64 - 1):016x}"


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
