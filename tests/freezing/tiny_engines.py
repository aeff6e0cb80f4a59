"""The tiny model under the engines that train it on several ranks; only ranks import this."""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import logger, safe_get_full_fp32_param
from frozen_reference import MAX_NORM, TinyLM, adamw, loss_of, steps_of_batches
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

logger.setLevel("ERROR")

ROWS = 6  # of each micro-batch: 1, 2 and 3 ranks share them evenly
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Trained:
    """The tiny model in training: under "DDP", "FSDP2", "ZeRO-1" to 3 or "BF16_Optimizer".

    The last is what DeepSpeed makes of ZeRO-1 that accumulates in fp32. "ZeRO-2, offload" and
    "ZeRO-3, offload" keep the optimizer in the CPU's memory. ZeRO-3 keeps vectors whole between
    steps, and splits matrices. ``options``: further entries of DeepSpeed's configuration.
    """

    def __init__(self, engine: str, dtype: str, seed: int = 0, **options: Any) -> None:
        self.engine = engine
        self.model: Any
        self.optimizer = None  # DeepSpeed's engine has its own
        if engine == "DDP":
            self.model = DistributedDataParallel(TinyLM(seed).float(), init_sync=False)
            self.optimizer = adamw(self.model.parameters())
        elif engine == "FSDP2":
            self.model = TinyLM(seed).to(DTYPES[dtype])
            for module in (self.model.up, self.model.down, self.model):
                fully_shard(module)
            self.optimizer = adamw(self.model.parameters())
        else:
            self.model = self._deepspeed(TinyLM(seed).float(), dtype, options)

    def _deepspeed(self, model: TinyLM, dtype: str, options: dict[str, Any]) -> Any:
        deepspeed.init_distributed("gloo")
        stage = 1
        if self.engine == "BF16_Optimizer":
            options["data_types"] = {"grad_accum_dtype": "fp32"}
        else:
            stage = int(self.engine[len("ZeRO-")])
        zero: dict[str, Any] = {"stage": stage, "stage3_param_persistence_threshold": 20}
        if self.engine.endswith("offload"):
            zero["offload_optimizer"] = {"device": "cpu"}
        config = {
            "train_micro_batch_size_per_gpu": ROWS // dist.get_world_size(),
            "gradient_accumulation_steps": 2,
            "gradient_clipping": MAX_NORM,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": dtype == "bf16"},
            **options,
        }
        optimizer = adamw(model.parameters())
        return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]

    def train(self, first: int, last: int) -> list[float]:
        """Steps ``first`` to ``last - 1``; the loss of each, the mean over all ranks."""
        rank, world = dist.get_rank(), dist.get_world_size()
        losses = []
        for batches in steps_of_batches(steps=last, rows=ROWS)[first:]:
            total = torch.zeros((), dtype=torch.float64)
            for input_ids in batches:
                mine = input_ids[rank::world]
                loss = loss_of(self.model(mine).float(), mine)
                total += loss.detach() / len(batches) / world
                if self.optimizer is None:
                    self.model.backward(loss)
                    self.model.step()
                else:
                    (loss / len(batches)).backward()
            if self.optimizer is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
                self.optimizer.step()
                self.optimizer.zero_grad()
            dist.all_reduce(total)
            losses.append(total.item())
        return losses

    def masters(self) -> dict[str, Tensor]:
        """What the optimizer steps, put together by the engine's own means."""
        if self.optimizer is None:
            return {
                name: safe_get_full_fp32_param(parameter).detach().clone()
                for name, parameter in self.model.module.named_parameters()
            }
        return {
            name: value.full_tensor() if isinstance(value, DTensor) else value.clone()
            for name, value in ((n, p.detach()) for n, p in self.model.named_parameters())
        }

    def copies(self) -> dict[str, Tensor]:
        """The weights of the forward pass put together, in their own dtype."""
        if self.optimizer is not None:
            return self.masters()
        parameters = dict(self.model.module.named_parameters())
        with deepspeed.zero.GatheredParameters(list(parameters.values())):
            return {name: parameter.detach().clone() for name, parameter in parameters.items()}
