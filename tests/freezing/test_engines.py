"""Trainers and optimizers under which a freeze is not guaranteed are refused by name."""

import pytest
import torch
from frozen_reference import TinyLM, adamw
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from freezetrain.errors import UserError
from freezetrain.freezing import freeze
from freezetrain.freezing.engines import refuse_unsupported, torch_optimizers
from freezetrain.regions import Region


def without_init(kind: type, *bases: type) -> object:
    """An object of ``kind`` that never saw a process group or a GPU."""
    return object.__new__(type(kind.__name__, (kind, *bases), {}))


def sharded_module(kind: type) -> nn.Module:
    model = without_init(kind, *(() if issubclass(kind, nn.Module) else (nn.Module,)))
    nn.Module.__init__(model)
    return nn.Sequential(nn.Linear(2, 2), model)


@pytest.mark.parametrize("kind", [FullyShardedDataParallel, FSDPModule])
def test_sharded_models_are_refused(kind: type) -> None:
    model = sharded_module(kind)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(UserError, match=f"cannot freeze under {kind.__name__}"):
        freeze(model, optimizer, Region.tensors(model, ["*"]))


def test_deepspeed_is_refused() -> None:
    class DeepSpeedEngine(nn.Module):
        """Stands for deepspeed's, which is recognized by its name."""

    with pytest.raises(UserError, match="cannot freeze under DeepSpeedEngine"):
        refuse_unsupported(DeepSpeedEngine())
    model = TinyLM()
    model.up.weight.ds_id = 0
    with pytest.raises(UserError, match="cannot freeze under DeepSpeed"):
        refuse_unsupported(model)


def test_distributed_tensors_are_refused(monkeypatch) -> None:
    model = nn.Linear(2, 2)
    parameter = torch.Tensor._make_subclass(type("DTensor", (torch.Tensor,), {}), torch.ones(2, 2))
    monkeypatch.setitem(model._parameters, "weight", parameter)
    assert DTensor.__name__ == "DTensor"
    with pytest.raises(UserError, match="cannot freeze under DTensor"):
        refuse_unsupported(model)


@pytest.mark.parametrize("kind", [ZeroRedundancyOptimizer, PostLocalSGDOptimizer, torch.optim.ASGD])
def test_optimizers_that_write_weights_elsewhere_are_refused(kind: type) -> None:
    with pytest.raises(UserError, match=f"cannot freeze under {kind.__name__}"):
        torch_optimizers(without_init(kind))


def test_wrapped_optimizers_are_unwrapped() -> None:
    class Wrapper:
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    inner = adamw(TinyLM().parameters())
    assert torch_optimizers(Wrapper(Wrapper(inner))) == [inner]
    with pytest.raises(UserError, match=r"torch\.optim\.Optimizer, got Wrapper"):
        torch_optimizers(Wrapper(None))
    with pytest.raises(UserError, match="ZeroRedundancyOptimizer"):
        torch_optimizers(Wrapper(without_init(ZeroRedundancyOptimizer)))


def test_parameters_must_be_in_the_optimizer_or_not_trainable() -> None:
    model = TinyLM()
    region = Region.tensors(model, ["up.*"])
    optimizer = adamw([model.up.weight])
    with pytest.raises(UserError, match=r"up\.bias .* is not in the optimizer \(AdamW\)"):
        freeze(model, optimizer, region)
    model.up.bias.requires_grad_(False)
    freeze(model, optimizer, region)


def test_optimizers_in_backward_are_refused() -> None:
    from torch.distributed.optim import _apply_optimizer_in_backward

    model = TinyLM()
    _apply_optimizer_in_backward(torch.optim.SGD, model.up.parameters(), {"lr": 0.1})
    with pytest.raises(UserError, match="steps in backward"):
        freeze(model, adamw(model.parameters()), Region.tensors(model, ["up.weight"]))


def wrapped_with(hook: object) -> nn.Module:
    model = without_init(DistributedDataParallel)
    nn.Module.__init__(model)
    model._comm_hooks = [(hook, None)]
    return nn.Sequential(model)


@pytest.mark.parametrize(
    "hook",
    [
        powerSGD_hook.powerSGD_hook,
        default_hooks.fp16_compress_wrapper(powerSGD_hook.powerSGD_hook),
        lambda state, bucket: None,
    ],
)
def test_communication_hooks_that_may_write_zeros_over_are_refused(hook: object) -> None:
    with pytest.raises(UserError, match="communication hook"):
        refuse_unsupported(wrapped_with(hook))


@pytest.mark.parametrize(
    "hook",
    [
        default_hooks.allreduce_hook,
        default_hooks.fp16_compress_hook,
        default_hooks.bf16_compress_hook,
    ],
)
def test_communication_hooks_that_keep_zeros_are_accepted(hook: object) -> None:
    refuse_unsupported(wrapped_with(hook))
