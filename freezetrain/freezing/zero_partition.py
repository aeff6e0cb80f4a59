"""ZeRO-3: how scoring's sums are split over ranks, as DeepSpeed splits the weights."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from freezetrain.regions.partition import Split


class Zero3(Split):
    """Each rank holds a flat part of every weight, of equal length: the last ones end in padding.

    Without an optimizer DeepSpeed gathers weights and reduces no gradients: each rank has the whole
    one of its own rows of the batch, and they are added up here, in fp32, as each appears.

    ``engine`` is what :func:`~freezetrain.freezing.zero.gathering` returned for the model.
    """

    def __init__(self, engine: object) -> None:
        super().__init__()
        self._engine = engine  # it stops gathering when it is gone

    def device(self, model: nn.Module) -> torch.device:  # weights may be offloaded
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def part(self, parameter: Any) -> Tensor:
        return parameter.ds_tensor.detach()

    def gradient(self, parameter: Any) -> Tensor:
        part = parameter.ds_tensor
        padded = torch.zeros(part.ds_numel * self.world, device=parameter.grad.device)
        padded[: parameter.ds_numel] = parameter.grad.flatten()
        mine = torch.empty(part.ds_numel, device=padded.device)
        group = parameter.ds_process_group
        dist.reduce_scatter(mine, list(padded.chunk(self.world)), group=group)
        return mine.to(part.device)  # which is the CPU's where weights are offloaded

    def whole(self, parameter: Any, part: Tensor) -> Tensor | None:
        full = self._gathered(parameter, part)
        return full.cpu() if self.rank == 0 else None

    def full(self, parameter: Any) -> Tensor:
        return self._gathered(parameter, self.part(parameter))

    def _gathered(self, parameter: Any, part: Tensor) -> Tensor:
        part = part.to("cuda" if torch.cuda.is_available() else "cpu")
        full = torch.empty(part.numel() * self.world, dtype=part.dtype, device=part.device)
        dist.all_gather(list(full.chunk(self.world)), part, group=parameter.ds_process_group)
        return full[: parameter.ds_numel].view(parameter.ds_shape)
