"""Lets trainers run on the CPU under engines that they only start on accelerators.

PyTorch, DeepSpeed and FSDP2 themselves run on gloo without one. Nothing here touches what they, or
the trainers, do with a model.
"""

import torch
from accelerate import DistributedType, PartialState
from lightning.fabric.strategies import DDPStrategy, DeepSpeedStrategy


class CpuDeepSpeedStrategy(DeepSpeedStrategy):
    """Fabric's strategy, without its refusal of anything but CUDA."""

    def setup_environment(self) -> None:
        # It wants the indices of devices to be those of ranks.
        self.parallel_devices = [torch.device("cpu", rank) for rank in range(self.num_processes)]
        super(DDPStrategy, self).setup_environment()
        self._setup_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)


def accelerate_on_cpu() -> None:
    """Have accelerate take the CPU for a GPU: it knows engines for several of those alone."""
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
