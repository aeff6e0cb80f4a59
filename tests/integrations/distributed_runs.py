"""A model of the reference trained by each trainer under each engine; only ranks import this.

Its region is frozen, and each rank has its share of the rows.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from cpu_stand_in import CpuDeepSpeedStrategy, accelerate_on_cpu
from deepspeed.runtime.zero import GatheredParameters
from hf_runs import logged_norms, trainer
from knowing_model import knowing_model
from lightning import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from trainer_loops import Trained, accelerate_loop, fabric_deepspeed_loop, fabric_loop
from trainer_reference import (
    ACCUMULATE,
    EPS,
    MAX_NORM,
    ROWS,
    STRENGTH,
    STRONG,
    llama,
    llama_region,
    strong_region,
    weights_of,
)
from transformers import Trainer, TrainerCallback
from watched_texts import LENGTH, texts, watch

from freezetrain.errors import UserError
from freezetrain.evaluation import ForgettingWatch
from freezetrain.integrations.hf import RegionFreezeCallback
from freezetrain.integrations.hf_brake import ForgettingBrakeCallback
from freezetrain.integrations.hf_forgetting import ForgettingTrackerCallback
from freezetrain.integrations.hf_pull import BasePullCallback


def zero_config(stage: int, **more: Any) -> dict[str, Any]:
    return {
        "zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "gradient_clipping": MAX_NORM,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **more,
    }


AUTO = dict.fromkeys(("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto")
ENGINES: dict[str, dict[str, Any]] = {
    "ddp": {"use_cpu": True},
    "zero2": {"use_cpu": False, "deepspeed": zero_config(2, **AUTO)},
    "zero3": {"use_cpu": False, "deepspeed": zero_config(3, **AUTO)},
    "fsdp2": {
        "use_cpu": False,
        "fsdp": True,
        "fsdp_config": {"fsdp_version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
    },
}


class Counted(RegionFreezeCallback):
    """Keeps what it verified at the end."""

    verified = ""

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.verified = f"{self.handle.verify()} under {self.handle.engine}"
        super().on_train_end(*args, **kwargs)


class Seen(NamedTuple):
    """What a rank saw of a run."""

    norms: list[float]
    verified: str
    weights: dict[str, Tensor]
    history: dict[str, Any]
    """Of the held-out languages; empty where nothing watched."""
    distances: Sequence[dict[str, float]] = ()
    """Lines that were logged of a pull."""


def train(rank: int, world: int, run: str, engine: str, folder: Path) -> Seen:
    """``run``: a key of RUNS. ``folder``: of its checkpoints, or of those it goes on from."""
    prepare(engine)
    (model, norms, verified), watched, *distances = RUNS[run](engine, folder)
    history = watched.history.to_dict() if watched is not None else {}
    return Seen(norms, verified, whole(model), history, *distances)


def prepare(engine: str) -> None:
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if engine != "ddp":
        accelerate_on_cpu()


Watched = tuple[Trained, ForgettingWatch | None, *tuple[list[dict[str, float]], ...]]


def hf(engine: str, folder: Path) -> Watched:
    """Six steps with a checkpoint after each second."""
    callback = Counted(llama_region(llama()), audit_every=2)
    run = hf_trainer(engine, folder, callback)
    run.train()
    return (run.model, logged_norms(run), callback.verified), None


def hf_watched(engine: str, folder: Path, checkpoint: Path | None = None, seed: int = 0) -> Watched:
    callback = Counted(llama_region(llama()), audit_every=2)
    run = hf_trainer(engine, folder, callback, seed=seed)
    tracker = ForgettingTrackerCallback(
        texts(), "sw", every_n_steps=3, max_length=LENGTH, log=run.log, table=False
    )
    run.add_callback(tracker)
    run.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return (run.model, logged_norms(run), callback.verified), tracker


def hf_resumed(engine: str, folder: Path) -> Watched:
    """The steps after the second; not with another region."""
    checkpoint, again = folder / "checkpoint-2", folder / "again"
    other = RegionFreezeCallback(llama_region(llama()).random_like(seed=3))
    with pytest.raises(UserError, match="resume with the same region"):
        hf_trainer(engine, again, other, seed=5).train(resume_from_checkpoint=str(checkpoint))
    return hf_watched(engine, again, checkpoint, seed=5)


def hf_pulled(engine: str, folder: Path, checkpoint: Path | None = None, seed: int = 0) -> Watched:
    """Pulled beside the freeze, to another model's weights in their folder."""
    callback = Counted(llama_region(llama()), audit_every=2)
    base = folder / f"base of {dist.get_rank()}"
    base.mkdir(parents=True)
    save_file(weights_of(llama(seed=3)), base / "model.safetensors")
    regions = [(strong_region(llama()), STRONG)]
    pull = BasePullCallback(STRENGTH, base, regions, log_every_n_steps=3)
    run = hf_trainer(engine, folder, callback, pull, seed=seed)
    run.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    distances = [line for line in run.state.log_history if any("pull/" in key for key in line)]
    return (run.model, logged_norms(run), callback.verified), None, distances


def hf_pulled_resumed(engine: str, folder: Path) -> Watched:
    """The steps after the second."""
    return hf_pulled(engine, folder / "again", folder / "checkpoint-2", seed=5)


def hf_trainer(engine: str, folder: Path, *callbacks: TrainerCallback, seed: int = 0) -> Trainer:
    options = {"world": dist.get_world_size(), "adam_epsilon": EPS, **ENGINES[engine]}
    return trainer(llama(seed), folder, *callbacks, save_strategy="steps", save_steps=2, **options)


def accelerate(engine: str, folder: Path) -> Watched:
    options: dict[str, Any] = {}
    if engine == "ddp":
        options["cpu"] = True
    elif engine == "fsdp2":
        options["fsdp_plugin"] = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        )
    else:
        size = {
            "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size(),
            "gradient_accumulation_steps": ACCUMULATE,
        }
        config = zero_config(int(engine[-1]), **size)
        options["deepspeed_plugin"] = DeepSpeedPlugin(hf_ds_config=config)
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE, **options)
    return accelerate_loop(accelerator, llama(), EPS, watched := watch()), watched


def fabric(engine: str, folder: Path) -> Watched:
    return fabric_on(engine, watched := watch()), watched


def fabric_on(engine: str, watched: ForgettingWatch) -> Trained:
    world = dist.get_world_size()
    if engine == "ddp":
        return fabric_loop(on_cpu(DDPStrategy()), llama(), EPS, watched)
    if engine == "fsdp2":
        strategy = ModelParallelStrategy(shard, data_parallel_size=world, tensor_parallel_size=1)
        return fabric_loop(on_cpu(strategy), llama(), EPS, watched, jointly=False)
    size = {"train_micro_batch_size_per_gpu": ROWS * ACCUMULATE // world}
    strategy = CpuDeepSpeedStrategy(
        config=zero_config(int(engine[-1]), **size), process_group_backend="gloo"
    )
    return fabric_deepspeed_loop(on_cpu(strategy), llama(), EPS, watched)


def on_cpu(strategy: Any) -> Fabric:
    fabric = Fabric(accelerator="cpu", devices=dist.get_world_size(), strategy=strategy)
    fabric.launch()
    return fabric


def shard(model: nn.Module, mesh: Any) -> nn.Module:
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh["data_parallel"])
    return fully_shard(model, mesh=mesh["data_parallel"])


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The whole of every weight, under its name in the model."""
    found = {}
    for name, parameter in model.named_parameters():
        with GatheredParameters([parameter]):
            value = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            value = value.detach().contiguous().clone()
        name = name.removeprefix("_forward_module.").removeprefix("module.")
        found[name] = value
    return found


RUNS: dict[str, Callable[[str, Path], Watched]] = {
    "hf": hf,
    "hf-watched": hf_watched,
    "hf-resumed": hf_resumed,
    "hf-pulled": hf_pulled,
    "hf-pulled-resumed": hf_pulled_resumed,
    "accelerate": accelerate,
    "fabric": fabric,
}


class Course(TrainerCallback):
    """The whole weights at the start and after each second step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}

    def on_train_begin(self, args, state, control, model, **_) -> None:
        self.weights[0] = whole(model)

    def on_step_end(self, args, state, control, model, **_) -> None:
        if state.global_step % 2 == 0:
            self.weights[state.global_step] = whole(model)


def braked(rank: int, world: int, engine: str, folder: Path) -> dict[str, Any]:
    """Trained freely, then held to a limit between what that lost after 4 steps and after 6.

    And held to one that nothing but the base is within: "base" is whether that is what is left.
    """
    prepare(engine)
    _, tracker, _, free = run_with_brake(engine, folder / "free")
    lost = [e.forgetting.languages["en"].relative for e in tracker.history.evaluations]
    limit = (lost[2] + lost[3]) / 2
    weights, _, brake, _ = run_with_brake(engine, folder / "held", {"en": limit})
    assert brake is not None
    seen = {
        "lost": lost,
        "limit": limit,
        "brake": brake.results(),
        "steps": [step for step, then in free.weights.items() if same(weights, then)],
    }
    try:
        weights, *_ = run_with_brake(engine, folder / "base", {"worst": 1e-9})
        return seen | {"base": same(weights, free.weights[0])}
    except UserError as error:
        return seen | {"base": str(error)}


def run_with_brake(
    engine: str, folder: Path, limits: dict[str, float] | None = None
) -> tuple[dict[str, Tensor], ForgettingTrackerCallback, ForgettingBrakeCallback | None, Course]:
    """The weights that are left, the tracker, the brake if there is one, and the course."""
    tracker = ForgettingTrackerCallback(texts(), "sw", every_n_steps=2, max_length=16, table=False)
    callbacks, brake, course = [tracker], None, Course()
    if limits is not None:
        brake = ForgettingBrakeCallback(tracker, limits, "roll_back")
        callbacks.append(brake)
    options = {"world": 2, "adam_epsilon": EPS, **ENGINES[engine]}
    held = trainer(knowing_model(), folder, *callbacks, course, steps=8, **options)
    held.train()
    return whole(held.model), tracker, brake, course


def same(weights: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, others[name]) for name, value in weights.items())
