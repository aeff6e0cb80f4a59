"""One rank of the runs in test_distributed.py: ``python distributed_worker.py FOLDER``.

Every trainer and engine trains the model of the reference with its region frozen, on this rank's
share of the rows, and leaves the whole weights, the gradient norms and what was verified.
"""

import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState
from cpu_stand_in import CpuDeepSpeedStrategy, accelerate_on_cpu
from deepspeed.runtime.zero import GatheredParameters
from hf_runs import logged_norms, trainer
from lightning import Fabric
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from trainer_loops import Trained, accelerate_loop, fabric_deepspeed_loop, fabric_loop
from trainer_reference import ACCUMULATE, EPS, MAX_NORM, ROWS, llama, llama_region
from transformers import Trainer
from watched_texts import LENGTH, texts, watch

from freezetrain.errors import UserError
from freezetrain.evaluation import ForgettingWatch
from freezetrain.integrations.hf import RegionFreezeCallback
from freezetrain.integrations.hf_forgetting import ForgettingTrackerCallback


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


def hf(
    engine: str, folder: Path, checkpoint: Path | None = None, seed: int = 0, watched: bool = False
) -> Trained:
    """Six steps with a checkpoint after each second, or those left after ``checkpoint``."""
    callback = Counted(llama_region(llama()), audit_every=2)
    run = hf_trainer(engine, folder, callback, seed)
    if watched:
        tracker = ForgettingTrackerCallback(
            texts(), "sw", every_n_steps=3, max_length=LENGTH, log=run.log, table=False
        )
        run.add_callback(tracker)
    run.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    if watched:
        keep(tracker, folder)
    return run.model, logged_norms(run), callback.verified


def hf_watched(engine: str, folder: Path) -> Trained:
    return hf(engine, folder, watched=True)


def hf_resumed(engine: str, folder: Path) -> Trained:
    checkpoint = folder.with_name(f"hf-watched-{engine}") / "checkpoint-2"
    other = RegionFreezeCallback(llama_region(llama()).random_like(seed=3))
    with pytest.raises(UserError, match="resume with the same region"):
        hf_trainer(engine, folder, other, seed=5).train(resume_from_checkpoint=str(checkpoint))
    return hf(engine, folder, checkpoint, seed=5, watched=True)


def hf_trainer(engine: str, folder: Path, callback: RegionFreezeCallback, seed: int) -> Trainer:
    options = {"world": dist.get_world_size(), "adam_epsilon": EPS, **ENGINES[engine]}
    return trainer(llama(seed), folder, callback, save_strategy="steps", save_steps=2, **options)


def keep(watch: ForgettingWatch, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    told = json.dumps(watch.history.to_dict())
    (folder / f"history-{dist.get_rank()}.json").write_text(told)


def accelerate(engine: str, folder: Path) -> Trained:
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
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(gradient_accumulation_steps=ACCUMULATE, **options)
    trained = accelerate_loop(accelerator, llama(), EPS, watched := watch())
    keep(watched, folder)
    return trained


def fabric(engine: str, folder: Path) -> Trained:
    watched = watch()
    trained = fabric_on(engine, watched)
    keep(watched, folder)
    return trained


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


RUNS: dict[str, Callable[[str, Path], Trained]] = {
    "hf": hf,
    "hf-watched": hf_watched,
    "hf-resumed": hf_resumed,
    "accelerate": accelerate,
    "fabric": fabric,
}


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    environment = dict(os.environ)
    for engine in ENGINES:
        if engine != "ddp":
            accelerate_on_cpu()
        for name, run in RUNS.items():
            here = folder / f"{name}-{engine}"
            model, norms, verified = run(engine, here)
            weights = whole(model)
            if not dist.get_rank():
                here.mkdir(exist_ok=True)
                save_file(weights, here / "weights.safetensors")
                (here / "seen.json").write_text(json.dumps({"norms": norms, "verified": verified}))
            os.environ.clear()  # of what says which engine accelerate is to use
            os.environ.update(environment)
            dist.barrier()
    os._exit(0)  # gloo may abort at exit


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other rank would wait in a collective
