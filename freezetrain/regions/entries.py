"""Which entries of one tensor belong to a region, kept in the fewest bytes."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Literal

import torch
from torch import Tensor

from freezetrain.errors import UserError
from freezetrain.regions.canonical import (
    bits_nbytes,
    candidate_slices,
    fit_as_indices,
    may_be_slices,
    pack_bits,
    quick_as_indices,
    sliceable,
    sorted_unique,
    unpack_bits,
)

Kind = Literal["all", "rows", "columns", "indices", "bits"]


@dataclass(frozen=True, eq=False)
class Entries:
    """A set of entries of a tensor of ``shape``. Build it with the class methods, on any device.

    ``kind`` is the one that takes the fewest bytes, ties going to the first of:

    - ``all``: every entry; ``data`` is None.
    - ``rows``: ``data`` holds indices into dimension 0, each standing for a whole slice.
    - ``columns``: the same for the last dimension. Both need a tensor of two dimensions or more.
    - ``indices``: ``data`` holds indices into the flattened tensor of at most 2^31 - 1 entries.
      The empty set is always ``indices`` of length 0.
    - ``bits``: ``data`` is a packed bool mask, see :mod:`freezetrain.regions.canonical`.

    Indices are int32, sorted and unique; bits are uint8. The class methods leave ``data`` on the
    CPU; ``read``, ``write`` and ``fill`` take tensors of any device, without a copy of ``data``
    for each call once ``to(device)`` has moved it. Of the dtypes, float8 is out: torch can read
    but not write single entries of it, and raises.
    """

    shape: tuple[int, ...]
    kind: Kind
    data: Tensor | None

    @classmethod
    def empty(cls, shape: Sequence[int]) -> "Entries":
        """No entry of a tensor of ``shape``."""
        return cls(tuple(shape), "indices", torch.zeros(0, dtype=torch.int32))

    @classmethod
    def whole(cls, shape: Sequence[int]) -> "Entries":
        """Every entry of a tensor of ``shape``."""
        return cls(tuple(shape), "all", None) if prod(shape) else cls.empty(shape)

    @classmethod
    def from_mask(cls, mask: Tensor) -> "Entries":
        """The entries where ``mask``, a bool tensor of the parameter's shape, is True."""
        if mask.dtype != torch.bool:
            raise UserError(f"expected a mask of dtype torch.bool, got {mask.dtype}")
        shape, count = tuple(mask.shape), int(mask.count_nonzero())
        if count == 0:
            return cls.empty(shape)
        if count == mask.numel():
            return cls.whole(shape)
        for kind, chosen in candidate_slices(mask, count):
            if int(chosen.sum()) * (mask.numel() // len(chosen)) == count:
                return cls._from_slices(shape, kind, chosen.nonzero().flatten())
        if fit_as_indices(shape, count):
            return cls(shape, "indices", mask.flatten().nonzero().flatten().int().cpu())
        return cls(shape, "bits", pack_bits(mask))

    @classmethod
    def from_indices(cls, shape: Sequence[int], indices: Tensor | Sequence[int]) -> "Entries":
        """The entries at ``indices`` [count] of the flattened tensor, in any order.

        UserError when an index is repeated or out of range.
        """
        shape = tuple(shape)
        flat = sorted_unique(indices, prod(shape), "flat indices")
        if len(flat) == 0:
            return cls.empty(shape)
        # A dense mask only where the set may turn out to be something smaller than indices.
        if fit_as_indices(shape, len(flat)) and not may_be_slices(shape, len(flat)):
            return cls(shape, "indices", flat.int().cpu())
        mask = torch.zeros(prod(shape), dtype=torch.bool, device=flat.device)
        return cls.from_mask(mask.index_fill_(0, flat, True).view(shape))

    @classmethod
    def from_rows(cls, shape: Sequence[int], rows: Tensor | Sequence[int]) -> "Entries":
        """Whole slices ``tensor[row]``. UserError for a repeated row or one out of range."""
        shape = sliceable(shape, "rows")
        return cls._from_slices(shape, "rows", sorted_unique(rows, shape[0], "rows"))

    @classmethod
    def from_columns(cls, shape: Sequence[int], columns: Tensor | Sequence[int]) -> "Entries":
        """Whole slices ``tensor[..., column]``. UserError as for :meth:`from_rows`."""
        shape = sliceable(shape, "columns")
        return cls._from_slices(shape, "columns", sorted_unique(columns, shape[-1], "columns"))

    @classmethod
    def _from_slices(cls, shape: tuple[int, ...], kind: Kind, index: Tensor) -> "Entries":
        if prod(shape) == 0 or len(index) == 0:
            return cls.empty(shape)
        if len(index) == (shape[0] if kind == "rows" else shape[-1]):
            return cls.whole(shape)
        slices = cls(shape, kind, index.int().cpu())
        if slices.nbytes <= bits_nbytes(slices.numel):
            return slices
        return cls(shape, "bits", pack_bits(slices.mask()))

    @property
    def numel(self) -> int:
        """Entries of the tensor, in the set or not."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the set takes in memory and on disk."""
        return 0 if self.data is None else self.data.numel() * self.data.element_size()

    @cached_property
    def count(self) -> int:
        """Entries in the set."""
        if self.data is None:
            return self.numel
        if self.kind == "bits":
            return int(self.mask().count_nonzero())
        return len(self.data) * (1 if self.kind == "indices" else self.numel // self._slices)

    @property
    def _slices(self) -> int:
        """How many rows or columns the tensor has."""
        return self.shape[0 if self.kind == "rows" else -1]

    def mask(self) -> Tensor:
        """The set as a bool tensor of ``shape``, on the device of ``data``."""
        if self.data is None:
            return torch.ones(self.shape, dtype=torch.bool)
        if self.kind == "bits":
            return unpack_bits(self.data, self.shape)
        mask = torch.zeros(self.shape, dtype=torch.bool, device=self.data.device)
        self.fill(mask, True)
        return mask

    def indices(self) -> Tensor:
        """The set as sorted int64 indices [count] into the flattened tensor."""
        if self.kind == "indices":
            return self._index()
        return self.mask().flatten().nonzero().flatten()

    def to(self, device: torch.device | str) -> "Entries":
        """The same set with ``data`` on ``device``."""
        if self.data is None or self.data.device == torch.device(device):
            return self
        return self._same_set(self.kind, self.data.to(device))

    def for_training(self, device: torch.device | str) -> "Entries":
        """The same set on ``device``, held so that every step can read and write it quickly.

        Bits become indices, 4 bytes an entry: on a CPU all of them, elsewhere those of at most an
        eighth of the entries.
        """
        if self._quick_as_indices(device):
            return self._same_set("indices", self.indices().int().to(device))
        return self.to(device)

    def nbytes_for_training(self, device: torch.device | str) -> int:
        """Bytes that :meth:`for_training` takes on ``device``."""
        return 4 * self.count if self._quick_as_indices(device) else self.nbytes

    def _quick_as_indices(self, device: torch.device | str) -> bool:
        return self.kind == "bits" and quick_as_indices(self.shape, self.count, device)

    def _same_set(self, kind: Kind, data: Tensor) -> "Entries":
        entries = Entries(self.shape, kind, data)
        if "count" in self.__dict__:  # else a GPU would be waited for to count again
            entries.__dict__["count"] = self.count
        return entries

    @torch.no_grad()
    def read(self, tensor: Tensor) -> Tensor:
        """Copy the values of ``tensor`` at the entries: [count], in the order of flat indices.

        ``tensor`` has this ``shape`` and any strides, dtype and device (UserError otherwise).
        """
        self._check_shape(tensor)
        if self.kind == "all":
            return tensor.clone(memory_format=torch.contiguous_format).view(-1)
        if self.kind == "bits":
            return tensor.masked_select(self.to(tensor.device).mask())
        assert self.data is not None
        index = self.data.to(tensor.device)  # reading, unlike writing, takes int32 as it is
        if self.kind == "rows":
            return tensor.index_select(0, index).reshape(-1)
        if self.kind == "columns":
            return tensor.index_select(-1, index).reshape(-1)
        if tensor.is_contiguous():
            return tensor.view(-1).index_select(0, index)
        return tensor[torch.unravel_index(index.long(), self.shape)]

    @torch.no_grad()
    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Put ``values`` [count], ordered and typed as :meth:`read` gives them, into ``tensor``.

        In place, every other entry untouched. UserError for another shape or dtype.
        """
        self._check_shape(tensor)
        if values.shape != (self.count,) or values.dtype != tensor.dtype:
            raise UserError(
                f"expected {self.count} values of dtype {tensor.dtype}, "
                f"got shape {list(values.shape)} of dtype {values.dtype}"
            )
        if self.kind == "all":
            tensor.copy_(values.view(self.shape))
            return
        if self.kind == "bits":
            tensor.masked_scatter_(self.to(tensor.device).mask(), values)
            return
        index = self._index(tensor.device)
        if self.kind == "rows":
            tensor.index_copy_(0, index, values.view(-1, *self.shape[1:]))
        elif self.kind == "columns":
            tensor.index_copy_(-1, index, values.view(*self.shape[:-1], -1))
        else:
            put(tensor, index, values)

    @torch.no_grad()
    def fill(self, tensor: Tensor, value: float) -> None:
        """Set the entries of ``tensor`` to ``value``, in place, every other entry untouched."""
        self._check_shape(tensor)
        if self.kind == "all":
            tensor.fill_(value)
            return
        if self.kind == "bits":
            tensor.masked_fill_(self.to(tensor.device).mask(), value)
            return
        index = self._index(tensor.device)
        if self.kind == "rows":
            tensor.index_fill_(0, index, value)
        elif self.kind == "columns":
            tensor.index_fill_(-1, index, value)
        else:
            put(tensor, index, value)

    def _index(self, device: torch.device | None = None) -> Tensor:
        """``data`` as int64, which indexing in place needs; widened for each call to stay small."""
        assert self.data is not None
        return self.data.to(device=device, dtype=torch.int64)

    def _check_shape(self, tensor: Tensor) -> None:
        if tensor.shape != self.shape:
            raise UserError(
                f"expected a tensor of shape {list(self.shape)}, got {list(tensor.shape)}"
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entries):
            return NotImplemented
        if self.shape != other.shape:
            return False
        if self.kind != other.kind:  # as for_training() may have made one of them
            return self.count == other.count and torch.equal(self.mask().cpu(), other.mask().cpu())
        if self.data is None or other.data is None:
            return True
        return torch.equal(self.data.cpu(), other.data.cpu())

    def __or__(self, other: "Entries") -> "Entries":
        return self._combine(other, torch.logical_or)

    def __and__(self, other: "Entries") -> "Entries":
        return self._combine(other, torch.logical_and)

    def __xor__(self, other: "Entries") -> "Entries":
        return self._combine(other, torch.logical_xor)

    def __sub__(self, other: "Entries") -> "Entries":
        return self._combine(other, torch.gt)  # True > False

    def _combine(
        self, other: "Entries", operation: Callable[[Tensor, Tensor], Tensor]
    ) -> "Entries":
        if self.shape != other.shape:
            raise UserError(
                f"expected two sets of entries of one shape, "
                f"got {list(self.shape)} and {list(other.shape)}"
            )
        return Entries.from_mask(operation(self.mask().cpu(), other.mask().cpu()))


ONE_THREAD = 32_768
"""Entries below which index_fill_ and index_copy_ stay on one thread of a CPU: torch's usual grain.
index_put_ has threads share the waiting for memory from 3,000 on (``cpu_index_kernel``)."""


def put(tensor: Tensor, index: Tensor, values: Tensor | float) -> None:
    """Write ``values``, [count] or one number, to ``index`` [count] of the flattened ``tensor``.

    ``index`` is int64 and unique, on the device of ``tensor``, which may have any strides.
    """
    few = tensor.device.type == "cpu" and len(index) < ONE_THREAD
    if tensor.is_contiguous() and not few:
        if isinstance(values, Tensor):
            tensor.view(-1).index_copy_(0, index, values)
        else:
            tensor.view(-1).index_fill_(0, index, values)
        return
    if not isinstance(values, Tensor):
        values = tensor.new_full((), values)
    if tensor.is_contiguous():
        tensor.view(-1).index_put_((index,), values)
    else:
        tensor.index_put_(torch.unravel_index(index, tensor.shape), values)


def narrow(entries: Entries, start: int, length: int) -> Entries:
    """The entries among the ``length`` flat ones from ``start`` on, as a set of shape [length]."""
    if entries.data is None:
        return Entries.whole((length,))
    if entries.kind == "rows":  # of the rows that the range touches: the tensor may be large
        width = prod(entries.shape[1:])
        first, last = start // width, -(-(start + length) // width)
        chosen = torch.zeros(last - first, dtype=torch.bool)
        rows = entries.data.cpu().long()
        chosen[rows[(rows >= first) & (rows < last)] - first] = True
        offset = start - first * width
        return Entries.from_mask(chosen.repeat_interleave(width)[offset : offset + length])
    if entries.kind != "indices":
        return Entries.from_mask(entries.mask().flatten()[start : start + length])
    index = entries.indices()
    bounds = torch.tensor([start, start + length], device=index.device)
    first, last = torch.searchsorted(index, bounds).tolist()
    return Entries.from_indices((length,), index[first:last] - start)


def count_before(entries: Entries, stop: int) -> int:
    """How many of the entries lie among the first ``stop`` flat ones."""
    if entries.data is None:
        return stop
    if entries.kind == "bits":
        return int(entries.mask().flatten()[:stop].count_nonzero())
    index = entries.data.long()
    if entries.kind == "indices":
        return int((index < stop).count_nonzero())
    width = prod(entries.shape[1:]) if entries.kind == "rows" else entries.shape[-1]
    row, rest = divmod(stop, width)
    if entries.kind == "columns":
        return row * len(index) + int((index < rest).count_nonzero())
    return int((index < row).count_nonzero()) * width + rest * int((index == row).any())


def draw_indices(numel: int, count: int, seed: int, name: str) -> Tensor:
    """``count`` of the flat indices 0 to numel - 1, uniformly without replacement, int64, sorted.

    The draw depends on ``seed`` and the parameter's ``name`` alone, not on what is drawn for
    other parameters. Memory grows with ``count``, not with ``numel``, below one half.
    """
    generator = generator_of(seed, name)
    if count <= numel // 2:
        return _draw(numel, count, generator)
    kept = torch.ones(numel, dtype=torch.bool)
    return kept.index_fill_(0, _draw(numel, numel - count, generator), False).nonzero().flatten()


def generator_of(seed: int, name: str) -> torch.Generator:
    """Random numbers on the CPU for the parameter ``name``, others for every seed and name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _draw(numel: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw again for each repeated index: by symmetry every subset is equally likely."""
    drawn = torch.zeros(0, dtype=torch.int64)
    while len(drawn) < count:
        # Draws below 2^62 because torch's own reduction to a smaller range is visibly biased.
        more = torch.randint(2**62, (count - len(drawn),), generator=generator) % numel
        drawn = torch.unique(torch.cat([drawn, more]))
    return drawn
