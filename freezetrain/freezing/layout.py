"""Where an engine keeps a region on this rank: what a freeze masks, guards and audits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from freezetrain.errors import CheckError
from freezetrain.freezing.digest import combined, value_digest
from freezetrain.freezing.shard import Shard
from freezetrain.regions import Resolved


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
    """Whether all ranks of the default process group train together."""
    replica: int = 0
    """Ranks of one replica number together hold each master once."""
    sharded: bool = False
    """Whether the masters are split over ranks or differ from the copies, which wants a proof."""
    piecewise: bool = False
    """Whether a training step is several steps of an inner optimizer, each of some masters."""
    full: Callable[[nn.Parameter], Tensor] = _itself
    """The whole of a parameter, gathered where it is split: call it on every rank."""

    def on_device(self) -> "Layout":
        """With the entries of every shard beside its values."""
        moved: dict[int, Shard] = {}  # one object stays one, so that entries are held once

        def move(shards: Sequence[Shard]) -> list[Shard]:
            for shard in shards:
                if id(shard) not in moved:
                    moved[id(shard)] = shard.on_its_device()
            return [moved[id(shard)] for shard in shards]

        masters, copies = move(self.masters), move(self.copies)
        # ZeRO-3 leaves parameters empty: the mask moves those entries when a gradient comes.
        known = {id(shard) for shard in (*self.masters, *self.copies)}
        gradients = [moved[id(g)] if id(g) in known else g for g in self.gradients]
        return replace(self, masters=masters, copies=copies, gradients=gradients)

    def describe(self) -> str:
        """The engine, and the dtypes that *bit for bit* is about."""

        def dtypes(shards: Sequence[Shard]) -> str:
            kinds = {str(shard.owner.dtype).removeprefix("torch.") for shard in shards}
            return " and ".join(sorted(kinds))

        if not self.masters:  # this rank has none
            return self.engine
        if dtypes(self.copies) in ("", dtypes(self.masters)):
            return f"{self.engine}, in {dtypes(self.masters)}"
        return (
            f"{self.engine}: its {dtypes(self.masters)} masters, made from weights in "
            f"{dtypes(self.copies)}, and these weights"
        )

    def gather(self, item: object) -> list:
        """``item`` of every rank, in their order: this rank's alone where it trains alone."""
        if not self.distributed:
            return [item]
        found: list = [None] * dist.get_world_size()
        dist.all_gather_object(found, item)
        return found


def plain(
    engine: str, optimizers: Sequence[Optimizer], resolved: Sequence[Resolved], replicated: bool
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
        replica=dist.get_rank() if replicated else 0,
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
    expected = []
    mine = [0] * len(resolved)
    for number, frozen in enumerate(resolved):
        whole = layout.full(frozen.parameter)
        entries = frozen.entries.to(whole.device)
        expected.append(int(value_digest(entries.read(whole), number, 0)))
        dtype = None if exact else whole.dtype
        held = [shard.digest(dtype) for shard in layout.masters if shard.number == number]
        mine[number] = combined([int(digest) for digest in held])
    ranks = layout.gather((layout.replica, expected, mine))
    for replica in {rank[0] for rank in ranks}:
        parts = [rank[2] for rank in ranks if rank[0] == replica]
        for number, frozen in enumerate(resolved):
            if combined([part[number] for part in parts]) != expected[number]:
                raise CheckError(
                    f"under {layout.engine}, the optimizer's copy of {frozen.name} does not hold "
                    "the model's weights at the frozen entries: weights were loaded into the "
                    "model after the engine was made (load them before, or through the engine), "
                    "the run was resumed (then check_base=False), or this version of the engine "
                    "lays its shards out in another way"
                )
