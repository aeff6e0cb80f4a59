"""FSDP2: parameters are DTensors, split over ranks along their first dimension."""

from collections.abc import Sequence
from math import prod

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor import Shard as ShardPlacement
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from freezetrain.errors import UserError
from freezetrain.freezing.layout import Layout, Shard
from freezetrain.freezing.optimizers import Optimizers
from freezetrain.regions import Resolved


def fsdp(optimizers: Optimizers, resolved: Sequence[Resolved]) -> Layout:
    """A model under ``fully_shard``, also replicated over groups of ranks (HSDP).

    Each rank masks, guards and keeps entries of its own shard alone. FSDP2 calls the
    post-accumulate hooks of a sharded parameter once its gradient has been reduced and before
    anything else can read it (``foreach_reduce`` in torch/distributed/fsdp).

    UserError for parameters that are not split along dimension 0 alone.
    """
    shards, replicas = [], set()
    for number, frozen in enumerate(resolved):
        shard, replica = _shard(frozen, number)
        shards.append(shard)
        replicas.add(replica)
    if len(replicas) > 1:
        raise UserError(
            "cannot freeze a model whose parameters lie on different device meshes: shard them "
            "all over one mesh"
        )
    return Layout(
        engine="FSDP2",
        optimizers=optimizers.hooked,
        inner=optimizers.inner,
        gradients=shards,
        masters=shards,
        distributed=True,
        replica=replicas.pop() if replicas else 0,
        sharded=True,
        piecewise=len(optimizers.inner) > 1,
        full=_full,
    )


def _shard(frozen: Resolved, number: int) -> tuple[Shard, int]:
    parameter = frozen.parameter
    if not isinstance(parameter, DTensor):
        raise UserError(
            f"{frozen.name} has frozen entries and is not sharded, unlike the rest of the model: "
            "call fully_shard on the whole model, without ignored_params"
        )
    mesh, placements = parameter.device_mesh, parameter.placements
    # By exact type: subclasses of Shard (under tensor parallelism) interleave what ranks hold.
    split = [axis for axis, where in enumerate(placements) if type(where) is ShardPlacement]
    kept = [axis for axis, where in enumerate(placements) if type(where) is Replicate]
    coordinate = mesh.get_coordinate()
    if (
        len(split) != 1
        or len(split) + len(kept) != len(placements)
        or placements[split[0]].dim != 0  # type: ignore[attr-defined]
        or coordinate is None
        or mesh.size() != dist.get_world_size()
    ):
        raise UserError(
            f"cannot freeze {frozen.name}, which is placed as {placements} on {mesh}: a region "
            "can follow parameters that all ranks share, split along dimension 0 alone "
            "(fully_shard without shard_placement_fn, without tensor parallelism)"
        )
    replica = 0
    for axis in kept:
        replica = replica * mesh.size(axis) + coordinate[axis]
    shape, offset = compute_local_shape_and_global_offset(parameter.shape, mesh, placements)
    first = offset[0] * prod(parameter.shape[1:]) if prod(shape) else 0
    return Shard.part(frozen, number, parameter, first, tuple(shape)), replica


def _full(parameter: nn.Parameter) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.full_tensor().detach()
