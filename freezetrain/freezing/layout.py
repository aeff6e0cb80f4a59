"""Where an engine keeps a region on this rank: shards, their digests, a layout and its proof."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from freezetrain.errors import CheckError
from freezetrain.freezing.optimizers import Optimizers
from freezetrain.ranks import from_all_ranks, together
from freezetrain.regions import Entries, Resolved
from freezetrain.regions.entries import count_before, narrow

T = TypeVar("T")

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


def _whole(parameter: nn.Parameter) -> Tensor:
    """Of a parameter that no engine has split."""
    return parameter.detach()


@dataclass(frozen=True, eq=False)
class Layout:
    """A region as one engine lays it out on this rank."""

    engine: str
    """Name, for messages."""
    optimizers: Sequence[Optimizer]
    """Those whose steps can move weights: outermost first where one steps inside another."""
    inner: Sequence[Optimizer]
    """Those of them that hold the tensors."""
    gradients: Sequence[Shard]
    """Owners are model parameters; their ``.grad`` is masked in a post-accumulate hook."""
    masters: Sequence[Shard]
    """The values of record, which optimizers step: fp32 copies where the engine keeps some."""
    copies: Sequence[Shard] = ()
    """The weights that the forward pass uses, where they are not the masters."""
    distributed: bool = False
    """Whether the ranks of ``group`` train together."""
    group: dist.ProcessGroup | None = None
    """Those that do; None: all of the default process group."""
    replica: int = 0
    """Ranks of one replica number together hold each master once."""
    sharded: bool = False
    """Whether the masters are split over ranks or differ from the copies, which wants a proof."""
    piecewise: bool = False
    """Whether a training step is several steps of inner optimizers, each of some masters."""
    full: Callable[[nn.Parameter], Tensor] = _whole
    """The whole of a parameter, gathered where it is split: call it on every rank."""

    def on_device(self) -> "Layout":
        """With all entries beside the values, so that no step has to move or unpack them."""
        # One object stays one, so that entries are held once.
        moved: dict[int, Shard] = {}
        held: dict[tuple[int, torch.device], Entries] = {}

        def move(shards: Sequence[Shard]) -> list[Shard]:
            for shard in shards:
                if id(shard) in moved:
                    continue
                device = shard.of(shard.owner).device
                key = id(shard.entries), device
                if key not in held:
                    held[key] = shard.entries.for_training(device)
                moved[id(shard)] = replace(shard, entries=held[key])
            return [moved[id(shard)] for shard in shards]

        masters, copies = move(self.masters), move(self.copies)
        # ZeRO-3 leaves parameters empty: the mask moves those entries when a gradient comes.
        known = {id(shard) for shard in (*self.masters, *self.copies)}
        gradients = [moved[id(g)] if id(g) in known else g for g in self.gradients]
        return replace(self, masters=masters, copies=copies, gradients=gradients)

    @property
    def first_rank(self) -> bool:
        """Whether this rank speaks for all."""
        return not self.distributed or dist.get_rank(self.group) == 0

    @property
    def rounds(self) -> bool:
        """Whether the masters were made from weights of another dtype."""
        return bool(self.copies) and _dtypes(self.masters) != _dtypes(self.copies)

    def describe(self) -> str:
        """The engine, and the dtypes that *bit for bit* is about."""
        if not self.masters:  # this rank has none
            return self.engine
        if not self.rounds:
            return f"{self.engine}, in {_dtypes(self.masters)}"
        return (
            f"{self.engine}: its {_dtypes(self.masters)} masters, made from weights in "
            f"{_dtypes(self.copies)}, and these weights"
        )

    def gather(self, item: T) -> list[T]:
        """``item`` of every rank, in their order: this rank's alone where it trains alone."""
        return from_all_ranks(item, self.group) if self.distributed else [item]

    def rank_of(self, place: int) -> int:
        """The rank whose item :meth:`gather` has at ``place``."""
        return place if self.group is None else dist.get_global_rank(self.group, place)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which an error on one rank is raised on all, so that none waits."""
        if not self.distributed:
            yield
            return
        with together(self.group):
            yield


def _dtypes(shards: Sequence[Shard]) -> str:
    kinds = {str(shard.owner.dtype).removeprefix("torch.") for shard in shards}
    return " and ".join(sorted(kinds))


def plain(
    engine: str,
    optimizers: Optimizers,
    resolved: Sequence[Resolved],
    replicated: bool,
    group: dist.ProcessGroup | None = None,
) -> Layout:
    """Each rank holds the whole model: one device, or several under DDP (``replicated``)."""
    shards = [Shard.whole(frozen, number) for number, frozen in enumerate(resolved)]
    return Layout(
        engine=engine,
        optimizers=optimizers.hooked,
        inner=optimizers.inner,
        gradients=shards,
        masters=shards,
        distributed=replicated,
        group=group,
        replica=dist.get_rank(group) if replicated else 0,
        piecewise=len(optimizers.inner) > 1,
    )


def prove(layout: Layout, resolved: Sequence[Resolved], exact: bool) -> None:
    """CheckError unless the masters of all ranks, put together, are the model's frozen weights.

    The weights are gathered by the engine's own means, one parameter at a time, so that this
    does not rest on the coordinates that the masters were found with. ``exact``: the masters hold
    the very values of the weights, as before training; else values that round to them. Call it on
    every rank.
    """
    if not layout.sharded:
        return
    held: list[list[Shard]] = [[] for _ in resolved]
    for shard in layout.masters:
        held[shard.number].append(shard)
    expected, mine = [], []
    for number, frozen in enumerate(resolved):
        whole = layout.full(frozen.parameter)
        entries = frozen.entries.to(whole.device)
        expected.append(int(value_digest(entries.read(whole), number, 0)))
        dtype = None if exact else whole.dtype
        mine.append(combined([int(shard.digest(dtype)) for shard in held[number]]))
    ranks = layout.gather((layout.replica, expected, mine))
    for replica in {rank[0] for rank in ranks}:
        parts = [rank[2] for rank in ranks if rank[0] == replica]
        for number, frozen in enumerate(resolved):
            # Of every rank, so that all of them see a difference and raise.
            if {combined([part[number] for part in parts])} != {rank[1][number] for rank in ranks}:
                raise CheckError(
                    f"under {layout.engine}, the optimizer's copy of {frozen.name} does not hold "
                    "the model's weights at the frozen entries: weights were loaded into the "
                    "model after the engine was made (load them before, or through the engine), "
                    "the run was resumed (then check_base=False), or this version of the engine "
                    "lays its shards out in another way"
                )
