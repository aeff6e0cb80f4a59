"""A user's loops with Accelerate and Lightning Fabric on the data of the reference."""

from typing import Any

import torch
from accelerate import Accelerator
from lightning import Fabric
from torch import Tensor, nn
from trainer_reference import ACCUMULATE, MAX_NORM, ROWS, llama_region, next_token_loss, rows

import freezetrain
from freezetrain.evaluation import ForgettingWatch
from freezetrain.freezing import Freeze

Trained = tuple[nn.Module, list[float], str]


def adamw(model: nn.Module, eps: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, eps=eps)


def micro_batches(rank: int, world: int) -> list[list[Tensor]]:
    """For each step, this rank's rows of its micro-batches."""
    return [
        [part[rank::world] for part in step.split(ROWS)] for step in rows().split(ACCUMULATE * ROWS)
    ]


def accelerate_loop(
    accelerator: Accelerator, model: nn.Module, eps: float, watch: ForgettingWatch
) -> Trained:
    """Train ``model`` through ``accelerator``; the norms of clipping, and what was verified."""
    region = llama_region(model)
    model, optimizer = accelerator.prepare(model, adamw(model, eps))
    handle = freezetrain.freeze(model, optimizer, region, audit_every=2)
    watch.start(model)
    norms: list[float] = []
    for batches in micro_batches(accelerator.process_index, accelerator.num_processes):
        for batch in batches:
            with accelerator.accumulate(model):
                accelerator.backward(next_token_loss(model(batch).logits, batch))
                if accelerator.sync_gradients:
                    norm = accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
                    norms.append(as_float(norm))
                optimizer.step()
                optimizer.zero_grad()
        watch.after_step(model, len(norms))
    watch.end(model, len(norms))
    return model, norms, ended(handle)


def fabric_loop(
    fabric: Fabric, model: nn.Module, eps: float, watch: ForgettingWatch, jointly: bool = True
) -> Trained:
    """The same with Fabric; an optimizer may have to be made of what sharding has left."""
    region = llama_region(model)
    if jointly:
        model, optimizer = fabric.setup(model, adamw(model, eps))
    else:
        model = fabric.setup(model)
        optimizer = fabric.setup_optimizers(adamw(model, eps))
    handle = freezetrain.freeze(model, optimizer, region, audit_every=2)
    watch.start(model)
    norms: list[float] = []
    for batches in micro_batches(fabric.global_rank, fabric.world_size):
        for number, batch in enumerate(batches, start=1):
            with fabric.no_backward_sync(model, enabled=number < ACCUMULATE):
                fabric.backward(next_token_loss(model(batch).logits, batch) / ACCUMULATE)
        norms.append(as_float(fabric.clip_gradients(model, optimizer, max_norm=MAX_NORM)))
        optimizer.step()
        optimizer.zero_grad()
        watch.after_step(model, len(norms))
    watch.end(model, len(norms))
    return model, norms, ended(handle)


def fabric_deepspeed_loop(
    fabric: Fabric, model: nn.Module, eps: float, watch: ForgettingWatch
) -> Trained:
    """DeepSpeed clips by itself; a step's micro-batches are one here."""
    region = llama_region(model)
    model, optimizer = fabric.setup(model, adamw(model, eps))
    handle = freezetrain.freeze(model, optimizer, region, audit_every=2)
    watch.start(model)
    norms: list[float] = []
    for batches in micro_batches(fabric.global_rank, fabric.world_size):
        batch = torch.cat(batches)
        fabric.backward(next_token_loss(model(batch).logits, batch))
        optimizer.step()
        # Fabric steps DeepSpeed's optimizer rather than the engine, which learns of no norm.
        norms.append(as_float(fabric.strategy.model.optimizer._global_grad_norm))
        watch.after_step(model, len(norms))
    watch.end(model, len(norms))
    return model, norms, ended(handle)


def ended(handle: Freeze) -> str:
    """How many entries were frozen, under what."""
    count = handle.verify()
    handle.remove()
    return f"{count} under {handle.engine}"


def as_float(norm: Any) -> float:
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
