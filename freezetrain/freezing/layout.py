"""Where an engine keeps a region on this rank: what a freeze masks, guards and audits."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from freezetrain.errors import CheckError
from freezetrain.freezing.shard import Shard, combined, value_digest
from freezetrain.ranks import from_all_ranks, together
from freezetrain.regions import Entries, Resolved


def _itself(parameter: nn.Parameter) -> Tensor:
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
    """Whether a training step is several steps of an inner optimizer, each of some masters."""
    full: Callable[[nn.Parameter], Tensor] = _itself
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

    def gather(self, item: object) -> list:
        """``item`` of every rank, in their order: this rank's alone where it trains alone."""
        return from_all_ranks(item, self.group) if self.distributed else [item]

    def rank_of(self, place: int) -> int:
        """The rank whose item :meth:`gather` has at ``place``."""
        return place if self.group is None else dist.get_global_rank(self.group, place)

    def together(self) -> AbstractContextManager[None]:
        """A block that all ranks which train together leave well, or all with an error."""
        return together(self.group) if self.distributed else nullcontext()


def _dtypes(shards: Sequence[Shard]) -> str:
    kinds = {str(shard.owner.dtype).removeprefix("torch.") for shard in shards}
    return " and ".join(sorted(kinds))


def plain(
    engine: str,
    optimizers: Sequence[Optimizer],
    resolved: Sequence[Resolved],
    replicated: bool,
    group: dist.ProcessGroup | None = None,
) -> Layout:
    """Each rank holds the whole model: one device, or several under DDP (``replicated``)."""
    shards = [Shard.whole(frozen, number) for number, frozen in enumerate(resolved)]
    return Layout(
        engine=engine,
        optimizers=optimizers,
        inner=optimizers[-1:],
        gradients=shards,
        masters=shards,
        distributed=replicated,
        group=group,
        replica=dist.get_rank(group) if replicated else 0,
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
