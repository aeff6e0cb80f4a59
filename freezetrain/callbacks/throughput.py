"""Callback that logs tokens per second, MFU, memory, hours left, and shares of the time."""

import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor, nn

from freezetrain.callbacks.base_pull import BasePull
from freezetrain.callbacks.region_freeze import RegionFreeze
from freezetrain.callbacks.tracker import ForgettingTracker, log_now
from freezetrain.regions.parameters import full_shape

# How configurations say that only some of a layer's weights act on each token.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class _Moment:
    """How far the run is at the end of an optimizer step, since the beginning of the fit."""

    clock: float
    """Seconds, of time.monotonic."""
    evaluating: float = 0.0
    """Seconds spent in evaluations so far."""
    tokens: int = 0
    """Trained on, over all ranks."""


class Throughput(L.Callback):
    """Logs, at the trainer's log interval, for the steps since the last time:

    - ``train/tokens_per_second`` over all ranks and ``train/tokens_per_second_per_device``;
      evaluations do not count in the time;
    - ``train/flops_utilization``: the model FLOPs of those tokens, see :func:`flops_per_token`,
      as a share of what the devices could do at their best (MFU); left out where either is not
      known, as on CPUs;

    and of this start of the run so far:

    - ``train/memory_peak_gib`` of this rank: what PyTorch has allocated on the GPU, or without
      one the resident memory of the process;
    - ``train/hours_left``, at the pace since the first step, evaluations included;
    - ``time/data``, ``time/evaluation``, ``time/freezing``, and with a BasePull ``time/pull``:
      shares of the wall time spent waiting for batches, in ForgettingTracker, in RegionFreeze's
      masks, guard and audits, in pulls. They are the host's: what it has only queued on a GPU
      passes later, where nothing is measured, since waiting for it would slow the training down.

    A batch is token ids [B, L], or a mapping that holds them as ``input_ids``.

    Not a subclass of Lightning's ThroughputMonitor, whose methods would all be overridden: it
    synchronizes the GPU after every micro-batch, counts ForgettingTracker's evaluations as
    training, works on rank 0 alone, logs past the progress bar, and takes the device's peak from
    the trainer's precision, which under FSDP2 is not what matrices are multiplied in.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        """``dtype``: what matrices are multiplied in; None: as the trainer's precision says."""
        self.dtype = dtype
        self._data = _DataClock()
        self._reset()

    def _reset(self) -> None:
        self._fit = self._logged = self._last = _Moment(time.monotonic())
        self._paced = self._fit.clock  # the end of the first step
        self._tokens = 0
        self._first_step = self._step = 0
        self._sequence_length = 0
        self._frozen: dict[str, float] = {}  # seconds, by state_key of a RegionFreeze
        self._pulled: dict[int, float] = {}  # the same by the id of a BasePull
        self._model: nn.Module | None = None
        self._peak: float | None = None  # FLOP/s of all devices
        self._flops: tuple[int, float | None] | None = None  # sequence length, FLOPs of a token
        self._memory = 0.0  # bytes at most, on any rank
        self._data.seconds = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit" and type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
            trainer.profiler = self._data  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._reset()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_step = self._step = trainer.global_step
        self._model = next((m for m in pl_module.modules() if _has_layers(m)), None)
        peak = get_available_flops(trainer.strategy.root_device, self.dtype or _dtype(trainer))
        self._peak = None if peak is None else float(peak) * trainer.world_size
        self._logged = self._now(trainer)  # evaluations before the first step do not slow it

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        ids: Tensor = batch["input_ids"] if isinstance(batch, Mapping) else batch
        self._tokens += ids.numel() * trainer.world_size
        self._sequence_length = ids.shape[-1]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RegionFreeze) and callback.handle is not None:
                self._frozen[callback.state_key] = callback.handle.seconds
            if isinstance(callback, BasePull) and callback.handle is not None:
                self._pulled[id(callback)] = callback.handle.seconds
        self._last = self._now(trainer)
        if self._step == self._first_step + 1:
            self._paced = self._last.clock  # the first step compiles, allocates, connects
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self._step % every == 0:
            self._log(trainer, pl_module)

    def _now(self, trainer: L.Trainer) -> _Moment:
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        evaluating = sum(c.seconds for c in callbacks if isinstance(c, ForgettingTracker))
        return _Moment(time.monotonic(), evaluating, self._tokens)

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        values = self._speed(self._logged, trainer.world_size)
        self._logged = self._last
        values["memory_peak_gib"] = _memory_peak(trainer.strategy.root_device) / 2**30
        steps = self._step - self._first_step - 1
        if steps and trainer.max_steps > 0:
            pace = (self._last.clock - self._paced) / steps
            left = [pace * (trainer.max_steps - self._step)]
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                remaining = callback.time_remaining() if isinstance(callback, Timer) else None
                if remaining is not None:
                    left.append(remaining)
            values["hours_left"] = max(0.0, min(left)) / 3600
        named = {f"train/{name}": value for name, value in values.items()} | self._shares(trainer)
        for name, value in named.items():
            pl_module.log(name, value, prog_bar=name == "train/tokens_per_second", logger=False)
        log_now(trainer, named, self._step)

    def _speed(self, since: _Moment, world: int) -> dict[str, float]:
        """Tokens per second, and MFU where it is known, from ``since`` to the last step."""
        seconds = self._last.clock - since.clock - (self._last.evaluating - since.evaluating)
        rate = (self._last.tokens - since.tokens) / max(seconds, 1e-9)
        speed = {"tokens_per_second": rate, "tokens_per_second_per_device": rate / world}
        if self._model is not None and self._peak is not None:
            if self._flops is None or self._flops[0] != self._sequence_length:
                flops = flops_per_token(self._model, self._sequence_length)
                self._flops = self._sequence_length, flops
            if self._flops[1] is not None:
                speed["flops_utilization"] = rate * self._flops[1] / self._peak
        return speed

    def _shares(self, trainer: L.Trainer) -> dict[str, float]:
        """Shares of the wall time since the beginning of the fit."""
        wall = max(self._last.clock - self._fit.clock, 1e-9)
        shares = {
            "time/evaluation": self._last.evaluating / wall,
            "time/freezing": sum(self._frozen.values()) / wall,
        }
        if self._pulled:
            shares["time/pull"] = sum(self._pulled.values()) / wall
        if trainer.profiler is self._data:  # type: ignore[attr-defined]
            shares["time/data"] = self._data.seconds / wall
        return shares

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        device = trainer.strategy.root_device
        peak = torch.tensor(_memory_peak(device), dtype=torch.float64, device=device)
        self._memory = float(trainer.strategy.reduce(peak, reduce_op="max"))

    def summary(self, trainer: L.Trainer) -> dict[str, float]:
        """The same figures of all steps that this start of the run has made, once it has ended.

        With their ``tokens``, ``steps`` and ``seconds`` (from the beginning of the fit to the end
        of the last step), and the memory peak the largest of all ranks. Empty where no step was
        left to make.
        """
        steps = self._step - self._first_step
        if not steps:
            return {}
        return {
            "tokens": self._last.tokens,
            "steps": steps,
            "seconds": self._last.clock - self._fit.clock,
            **self._speed(self._fit, trainer.world_size),
            "memory_peak_gib": self._memory / 2**30,
            **self._shares(trainer),
        }


class _DataClock(PassThroughProfiler):
    """Adds up the time in which Lightning's loop waits for training batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._start = 0.0

    def start(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self._start = time.monotonic()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.seconds += time.monotonic() - self._start


def flops_per_token(model: nn.Module, sequence_length: int) -> float | None:
    """Floating-point operations of a forward and backward pass, for each token of a sequence.

    6·N + 12·layers·heads·head_dim·sequence_length: Chowdhery et al., "PaLM", arXiv 2204.02311,
    appendix B. N counts the weights that tokens are multiplied by, so all but embeddings that are
    only looked up. Attention counts in full, also the half that a causal mask leaves out; what
    gradient checkpointing computes twice counts once. None for a model whose configuration does
    not say its layers and heads, and for mixtures of experts, whose weights do not all act.
    """
    if not _has_layers(model):
        return None
    config = _text_config(model)
    if any(getattr(config, name, None) for name in _EXPERTS):
        return None
    multiplied = {
        id(parameter): prod(full_shape(parameter))
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    }
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 12 * config.num_hidden_layers * heads * width * sequence_length
    return 6.0 * sum(multiplied.values()) + attention


def _text_config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _has_layers(module: nn.Module) -> bool:
    if not hasattr(module, "config"):
        return False
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    config = _text_config(module)
    return all(isinstance(getattr(config, name, None), int) for name in names)


def _dtype(trainer: L.Trainer) -> torch.dtype:
    precision = str(trainer.precision)
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


def _memory_peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
