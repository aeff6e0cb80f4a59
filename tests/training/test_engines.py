"""What the Trainer is told, from the recipe's engine and from who started the processes."""

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from freezetrain.devices import kind_of, world_size
from freezetrain.errors import UserError
from freezetrain.ranks import Launch
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.training import engines as strategies
from freezetrain.training.engines import (
    DeepSpeed,
    deepspeed_config,
    policy,
    trainer_options,
)

ALONE = Launch()
CLUSTER = Launch(rank=5, local_rank=1, world=8, local_world=4, nodes=2, by="torchrun")
SETTINGS = Optimization(sequence_length=16, micro_batch=2, batch_tokens=16 * 32)


@pytest.mark.parametrize(
    ("engine", "launch", "gpus", "world"),
    [
        (Engine(), ALONE, 0, 1),
        (Engine(), ALONE, 4, 4),
        (Engine(devices=2), ALONE, 4, 2),
        (Engine(devices=3), ALONE, 0, 3),  # CPU processes
        (Engine(devices=2), CLUSTER, 4, 8),  # the launcher says it
    ],
)
def test_world_size(engine, launch, gpus, world, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert world_size(engine, launch) == world


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"devices is 4 and this machine has 2 GPUs; ask for 2"):
        world_size(Engine(devices=4), ALONE)


def test_auto_is_one_device_or_ddp():
    assert kind_of(Engine(), 1) == "one"
    assert kind_of(Engine(), 2) == "ddp"
    assert kind_of(Engine(kind="zero-2"), 1) == "zero-2"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("auto", DDPStrategy),
        ("ddp", DDPStrategy),
        ("fsdp2", ModelParallelStrategy),
        ("zero-1", DeepSpeed),
        ("zero-3", DeepSpeed),
    ],
)
def test_strategy_devices_and_accumulation(kind, expected):
    options = trainer_options(Engine(kind=kind), SETTINGS, CLUSTER, {})
    assert type(options["strategy"]) is expected
    assert (options["devices"], options["num_nodes"]) == (4, 2)
    assert options["accumulate_grad_batches"] == 2  # 2 x 8 ranks x 2 = the step's 32 sequences


def test_one_device_has_no_strategy():
    options = trainer_options(Engine(), SETTINGS, ALONE, {})
    assert "strategy" not in options
    assert options["accumulate_grad_batches"] == 16


def test_fsdp2_casts_by_itself():
    settings = Optimization(precision="bf16-mixed", micro_batch=2, batch_tokens=8 * 2 * 512)
    assert trainer_options(Engine(kind="fsdp2"), settings, CLUSTER, {})["precision"] == "32-true"
    assert policy(settings).param_dtype == torch.bfloat16
    assert policy(settings).reduce_dtype == torch.float32
    assert trainer_options(Engine(kind="ddp"), settings, CLUSTER, {})["precision"] == "bf16-mixed"
    assert policy(Optimization(precision="32-true")).param_dtype is None


def test_deepspeed_config_takes_more_entries():
    engine = Engine(
        kind="zero-3",
        offload="all",
        deepspeed={"zero_optimization": {"sub_group_size": 5}, "steps_per_print": 9},
    )
    config = deepspeed_config(engine, SETTINGS)
    assert config["steps_per_print"] == 9
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["sub_group_size"]) == (3, 5)
    assert zero["offload_optimizer"]["device"] == zero["offload_param"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"gradient_clipping": 2.0}, "sets gradient_clipping, which follows from optimization"),
        ({"zero_optimization": {"stage": 1}}, "sets stage 1 and engine.kind is zero-2"),
    ],
)
def test_deepspeed_entries_that_contradict_are_refused(more, complaint):
    with pytest.raises(UserError, match=complaint):
        deepspeed_config(Engine(kind="zero-2", deepspeed=more), SETTINGS)


# The entries that https://www.deepspeed.ai/docs/config-json/ describes and that can be given.
DOCUMENTED = [
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "sparse_gradients",
    "steps_per_print",
    "wall_clock_breakdown",
    "dump_state",
    "autotuning",
    "flops_profiler",
    "activation_checkpointing",
    "sparse_attention",
    "data_efficiency",
    "curriculum_learning",
    "tensorboard",
    "wandb",
    "csv_monitor",
    "elasticity",
    "comms_logger",
    "compression_training",
    "checkpoint",
    "data_types",
    "aio",
]


def test_all_documented_entries_of_deepspeed_are_known():
    more = dict.fromkeys(DOCUMENTED, 1)
    config = deepspeed_config(Engine(kind="zero-2", deepspeed=more), Optimization())
    assert config.keys() >= more.keys()


def test_auto_precision_is_fp32_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert strategies.precision(Optimization()) == "32-true"
