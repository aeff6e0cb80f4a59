"""How ranks share a model and the batches that it is scored on."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from freezetrain.errors import UserError
from freezetrain.head.chunks import parts_of


class Partition:
    """A rank by itself, which holds the whole model and runs every batch.

    In every other one, too, a gradient is that of a batch's mean loss, so that all engines give
    the sums that one rank gives. A rank's *part* of a parameter is what of it, and of its sums, it
    holds: a tensor of any shape, the same for both.
    """

    rank, world = 0, 1
    turns = 1  # batches that are run at the same time, each by another rank
    loss_factor = 1.0  # makes up for an engine that averages gradients over ranks

    def device(self, model: nn.Module) -> torch.device:
        """Where the model runs."""
        return next(model.parameters()).device

    def passes(self, number: int, batch: Tensor, at_once: int) -> list[tuple[Tensor, bool]]:
        """Rows of batch ``number`` for this rank to run, and whether they count, pass by pass.

        At most ``at_once`` rows a pass. Ranks that share the weights get the same number of passes.
        """
        return [(batch[part], True) for part in parts_of(len(batch), at_once)]

    def part(self, parameter: nn.Parameter) -> Tensor:
        """This rank's part of a weight, as it is held."""
        return parameter.detach()

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        """This rank's part of a pass's gradient, fp32; called as ``parameter.grad`` is there.

        The caller may write into it, and drops ``parameter.grad``.
        """
        assert parameter.grad is not None
        return parameter.grad.float()

    def total(self, part: Tensor) -> Tensor:
        """This rank's part of a sum over the batches of all ranks; all call this."""
        return part

    def everywhere(self, values: Tensor) -> Tensor:
        """A small tensor summed over all ranks, on each; all call this."""
        return values

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor | None:
        """The whole of a parameter's parts: on rank 0's CPU, None on other ranks; all call this."""
        return part.cpu()

    def full(self, parameter: nn.Parameter) -> Tensor:
        """The whole weight, on every rank; all call this."""
        return parameter.detach()


class Ranks(Partition):
    """What all partitions over several ranks share. Process groups are started by the caller."""

    def __init__(self) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def everywhere(self, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values


class Replicated(Ranks):
    """Each rank holds the whole model and takes its turn at whole batches; sums are added last."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = self.world

    def passes(self, number: int, batch: Tensor, at_once: int) -> list[tuple[Tensor, bool]]:
        mine = number % self.turns == self.rank
        return super().passes(number, batch, at_once) if mine else []

    def total(self, part: Tensor) -> Tensor:
        part = part.clone()
        dist.reduce(part, dst=0)
        return part

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor | None:
        return part.cpu() if self.rank == 0 else None


class Split(Ranks):
    """Each rank holds a part of every weight, and runs some rows of every batch."""

    def passes(self, number: int, batch: Tensor, at_once: int) -> list[tuple[Tensor, bool]]:
        # A rank that has fewer rows than others takes part in their passes, with one of no account.
        passes = []
        for part in parts_of(len(batch), at_once * self.world):
            rows = batch[part]
            mine = rows[self.rank :: self.world]
            passes.append((mine, True) if len(mine) else (rows[:1], False))
        return passes


class FullyShard(Split):
    """FSDP2: parameters are DTensors, split along their first dimension over one mesh.

    FSDP2 reduces a gradient, and averages it over ranks, before it calls the post-accumulate hooks
    of a sharded parameter (``foreach_reduce`` in torch/distributed/fsdp).

    Raises:
        UserError: a parameter that is not sharded.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.loss_factor = float(self.world)
        for name, parameter in model.named_parameters():
            if not isinstance(parameter, DTensor):
                raise UserError(
                    f"expected a model whose every parameter is sharded, {name!r} is not: call "
                    "fully_shard on the whole model, without ignored_params"
                )

    def part(self, parameter: nn.Parameter) -> Tensor:
        assert isinstance(parameter, DTensor)
        return parameter.to_local().detach()

    def gradient(self, parameter: nn.Parameter) -> Tensor:
        assert isinstance(parameter.grad, DTensor)
        return parameter.grad.to_local().float()

    def whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor | None:
        assert isinstance(parameter, DTensor)
        mesh, placements = parameter.device_mesh, parameter.placements
        full = DTensor.from_local(
            part, mesh, placements, shape=parameter.shape, stride=parameter.stride()
        ).full_tensor()
        return full.cpu() if self.rank == 0 else None

    def full(self, parameter: nn.Parameter) -> Tensor:
        assert isinstance(parameter, DTensor)
        return parameter.full_tensor().detach()
