"""The engine is found out; where a freeze is not guaranteed, it is refused by name."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from frozen_reference import TinyLM, adamw, mixed_region
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from freezetrain.errors import UserError
from freezetrain.freezing import freeze
from freezetrain.freezing.engines import lay_out, refuse_unsupported
from freezetrain.freezing.layout import Layout
from freezetrain.regions import Region


def without_init(kind: type, *bases: type) -> object:
    """An object of ``kind`` that never saw a process group or a GPU."""
    return object.__new__(type(kind.__name__, (kind, *bases), {}))


def named(name: str, *bases: type) -> type:
    """Stands for a class of a package that tells by its name what it is."""
    return type(name, bases, {})


def laid_out(optimizer: object) -> Layout:
    return lay_out(TinyLM(), optimizer, [], None)


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_fsdp1_is_refused() -> None:
    inner = without_init(FullyShardedDataParallel)
    nn.Module.__init__(inner)
    model = nn.Sequential(nn.Linear(2, 2), inner)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(UserError, match=r"under FullyShardedDataParallel: .*\(use FSDP2\)"):
        freeze(model, optimizer, Region.tensors(model, ["*"]))


def test_flat_parameters_are_refused(monkeypatch) -> None:
    model = nn.Linear(2, 2)
    flat = torch.Tensor._make_subclass(named("FlatParameter", nn.Parameter), torch.ones(2, 2))
    monkeypatch.setitem(model._parameters, "weight", flat)
    with pytest.raises(UserError, match="cannot freeze under FlatParameter"):
        refuse_unsupported(model)


def test_pipelines_are_refused() -> None:
    with pytest.raises(UserError, match="cannot freeze under PipelineEngine: it splits"):
        refuse_unsupported(named("PipelineEngine", nn.Module)())


def test_a_plain_model_needs_an_optimizer() -> None:
    model = TinyLM()
    with pytest.raises(UserError, match=r"expected an optimizer: .* for a DeepSpeed engine"):
        freeze(model, None, mixed_region(model))
    engine = named("DeepSpeedEngine", nn.Sequential)(model)
    with pytest.raises(UserError, match="expected an optimizer"):
        freeze(engine, None, mixed_region(model))


def test_an_engine_brings_its_own_optimizer() -> None:
    """Stage 0 of DeepSpeed in fp32, whose optimizer is the user's own."""
    model = TinyLM()
    engine = named("DeepSpeedEngine", nn.Sequential)(model)
    engine.optimizer = adamw(model.parameters())
    handle = freeze(engine, None, mixed_region(model))
    assert handle.engine == "DeepSpeed stage 0"
    model.norm.weight.grad = torch.ones_like(model.norm.weight)
    engine.optimizer.step()
    assert not model.norm.weight.eq(1).all()
    assert handle.verify() == handle.count


def test_zero_3_with_an_optimizer_that_is_not_deepspeeds_is_refused() -> None:
    model = TinyLM()
    model.up.weight.ds_id = 0  # the mark on an else plain Parameter
    with pytest.raises(UserError, match=r"up\.weight is partitioned by ZeRO-3, .*\(AdamW\)"):
        freeze(model, adamw(model.parameters()), Region.tensors(model, ["up.weight"]))


def test_replicas_are_looked_for_only_in_a_process_group(one_rank: None) -> None:
    model = TinyLM()
    for replicated in (None, True, False):
        layout = lay_out(model, adamw(model.parameters()), [], replicated)
        assert (layout.engine, layout.distributed) == ("one device", False)


def test_fsdp2_on_one_rank(one_rank: None) -> None:
    model = TinyLM()
    region = mixed_region(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fully_shard(model)
    optimizer = adamw(model.parameters())
    handle = freeze(model, optimizer, region, audit_every=1)
    assert handle.engine == "FSDP2"
    for _ in range(2):
        model(torch.arange(6)[None]).square().mean().backward()
        optimizer.step()
    assert handle.verify() == sum(int(mask.sum()) for mask in region.masks().values())
    for name, mask in region.masks().items():
        now = dict(model.named_parameters())[name].full_tensor().detach()
        assert torch.equal(now[mask], before[name][mask])
        assert mask.all() or not torch.equal(now, before[name])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"shard_placement_fn": lambda _: Shard(1)}, r"cannot freeze up\.weight, which is placed"),
        ({"ignored": "up.weight"}, r"up\.weight has frozen entries and is not sharded"),
    ],
    ids=["another dimension", "ignored"],
)
def test_fsdp2_that_a_region_cannot_follow_is_refused(
    one_rank: None, options: dict, complaint: str
) -> None:
    model = nn.Module()
    model.up, model.down = nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False)
    if (name := options.pop("ignored", None)) is not None:
        options["ignored_params"] = {model.get_parameter(name)}
    region = Region.tensors(model, ["up.weight"])
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)), **options)
    with pytest.raises(UserError, match=complaint):
        freeze(model, adamw(model.parameters()), region)


@pytest.mark.parametrize(
    "kind",
    [
        ZeroRedundancyOptimizer,
        PostLocalSGDOptimizer,
        torch.optim.ASGD,
        named("AdamWScheduleFree", torch.optim.Optimizer),
        named("MuonWithAuxAdam", torch.optim.Optimizer),
        named("AdaLomo", torch.optim.Optimizer),
        named("OnebitLamb", torch.optim.Optimizer),
        named("ZeroOneAdam", torch.optim.Optimizer),
    ],
)
def test_optimizers_that_write_weights_elsewhere_are_refused(kind: type) -> None:
    with pytest.raises(UserError, match=rf"cannot freeze under {kind.__name__}: (?!its step)"):
        laid_out(without_init(kind))


def test_wrapped_optimizers_are_unwrapped() -> None:
    class Wrapper:
        def __init__(self, optimizer: object) -> None:
            self.optimizer = optimizer

    inner = adamw(TinyLM().parameters())
    layout = laid_out(Wrapper(Wrapper(inner)))
    assert layout.optimizers == layout.inner == [inner]
    with pytest.raises(UserError, match=r"torch\.optim\.Optimizer, got Wrapper"):
        laid_out(Wrapper(None))
    with pytest.raises(UserError, match="ZeroRedundancyOptimizer"):
        laid_out(Wrapper(without_init(ZeroRedundancyOptimizer)))


def test_a_wrapper_that_shares_the_hooks_of_what_is_in_it_is_hooked_once() -> None:
    """As Fabric's does."""
    inner = adamw(TinyLM().parameters())
    wrapper = named("FabricAdamW", type(inner)).__new__(named("FabricAdamW", type(inner)))
    wrapper.__dict__ = {**inner.__dict__, "optimizer": inner}
    assert laid_out(wrapper).optimizers == [inner]


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
    refuse_unsupported(wrapped_with(hook), masked=False)  # a pull does not touch gradients


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


def test_several_processes_without_an_engine_must_be_explained(monkeypatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 4)
    model = TinyLM()
    optimizer, region = adamw(model.parameters()), mixed_region(model)
    with pytest.raises(UserError, match="4 processes run and the model is under no engine"):
        freeze(model, optimizer, region)
    assert freeze(model, optimizer, region, replicated=False).engine == "one device"
