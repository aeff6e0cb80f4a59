"""The optimizer and its learning rate over the run, and steps that would do harm."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from freezetrain.errors import DivergedError
from freezetrain.recipe.optimization import Optimization
from freezetrain.training.groups import parameter_groups
from freezetrain.training.optimizer_kinds import make_optimizer


def learning_rate_factor(step: int, steps: int, settings: Optimization) -> float:
    """Share of the peak learning rate at optimizer step ``step``, counted from 0, of ``steps``.

    The warm-up is a straight line that leaves ``warmup_from`` one step before the first (a step
    with none would do nothing) and reaches 1 with its last step. What then falls, a half cosine
    or the straight line at the end of wsd, starts from 1 and would reach
    ``min_learning_rate_ratio`` one step after the last.

    cosine: Loshchilov and Hutter, arXiv 1608.03983. wsd (warm-up, stable, decay): Hu et al.,
    "MiniCPM", arXiv 2404.06395; the straight line: Hägele et al., arXiv 2405.18392.
    """
    warmup = min(settings.warmup_steps, steps)
    if step < warmup:
        first = settings.warmup_from
        return first + (1 - first) * (step + 1) / warmup
    lowest = settings.min_learning_rate_ratio
    if settings.schedule == "constant":
        return 1.0
    if settings.schedule == "wsd":
        start = max(float(warmup), (1 - settings.decay_ratio) * steps)
        return 1 - (1 - lowest) * _progress(step, start, steps)
    return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, steps)))


def _progress(step: int, start: float, end: int) -> float:
    """How much of the way from ``start`` to ``end`` is done at ``step``, from 0 to 1."""
    if step <= start:
        return 0.0
    return min(1.0, (step - start) / (end - start)) if end > start else 1.0


def build_optimizer(
    model: nn.Module, settings: Optimization, steps: int, device: torch.device | None = None
) -> tuple[Optimizer, LambdaLR]:
    """The optimizer over the model's trainable parameters, and its schedule, a tick a step of it.

    ``device``: where it will step, if that is not where the parameters are now: DeepSpeed moves
    them later, and an offloaded optimizer steps on the CPU. AdamW on GPUs and CPUs is PyTorch's
    fused kernel, one pass over each weight, its gradient and its moments; its default elsewhere.
    The schedule multiplies the learning rate of each group.
    """
    groups = parameter_groups(model, settings)
    kinds = {p.device.type for group in groups for p in group.parameters}
    if device is not None:
        kinds = {device.type}
    optimizer = make_optimizer(groups, settings, fused=kinds in ({"cuda"}, {"cpu"}))
    load_exactly(optimizer)
    return optimizer, LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, settings))


def load_exactly(optimizer: Optimizer) -> None:
    """Have state that a checkpoint brings keep its types, with which a run goes on as it was.

    PyTorch casts it to the type of the weights: of those in 16 bits fp32 statistics would be
    rounded. The state of a step count, and of what is no tensor, is left to it.
    """
    saved: list[dict[str, Any]] = []

    def before(_: Optimizer, state: dict[str, Any]) -> None:
        saved[:] = [state]

    def after(loaded: Optimizer) -> None:
        numbers = [n for group in saved[0]["param_groups"] for n in group["params"]]
        tensors = [tensor for group in loaded.param_groups for tensor in group["params"]]
        for number, tensor in zip(numbers, tensors, strict=True):
            for key, value in saved[0]["state"].get(number, {}).items():
                now = loaded.state[tensor][key]
                if isinstance(value, Tensor) and key != "step" and value.dtype != now.dtype:
                    loaded.state[tensor][key] = value.to(now.device, copy=True)
        saved.clear()

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(after)


KEPT = 100  # good norms that the median is of

NEEDED = 20  # good norms before a norm counts as a spike

IN_A_ROW = 10  # bad steps that end the run where they are skipped


class BadSteps:
    """Judges each optimizer step before its update.

    ``stop`` ends the run at the first bad step. ``skip`` has the caller leave the update out, and
    ends the run after ten bad steps in a row, when it is no longer the batches that are bad. A
    spike is a norm of more than ``spike_factor`` times the median of the last 100 good ones, of
    which there must be 20; bad steps do not enter the median. (Skipping a step with a spike:
    Chowdhery et al., "PaLM", arXiv 2204.02311, section 5.1, go back and skip the batches.)

    All ranks must be given the same values, and then decide the same.
    """

    def __init__(self, action: Literal["stop", "skip"], spike_factor: float | None = None) -> None:
        self.action = action
        self.spike_factor = spike_factor
        self.skipped = 0
        """Steps left out so far, over all starts of the run."""
        self._in_a_row = 0
        self._norms: deque[float] = deque(maxlen=KEPT)

    def is_bad(self, loss: float, norm: float | None, step: int) -> bool:
        """Whether to leave the update of optimizer step ``step``, counted from 1, out.

        ``loss`` is the step's, over all ranks and micro-batches; ``norm`` that of its gradients
        before clipping, None where the engine keeps it to itself. DivergedError where the run ends.
        """
        problem = self._problem(loss, norm)
        if problem is None:
            if norm is not None:
                self._norms.append(norm)
            self._in_a_row = 0
            return False
        if self.action == "stop":
            raise DivergedError(
                f"{problem} at step {step}; checkpoints so far are kept: lower the learning rate "
                "or look at the texts of that step, then start anew, or skip such steps with "
                "optimization.bad_steps=skip"
            )
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row == IN_A_ROW:
            raise DivergedError(
                f"{problem} at step {step}, the {IN_A_ROW}th bad step in a row; checkpoints so far "
                "are kept: lower the learning rate, or raise optimization.spike_factor, then start "
                "anew"
            )
        return True

    def _problem(self, loss: float, norm: float | None) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if norm is None:
            return None
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if self.spike_factor is not None and len(self._norms) >= NEEDED:
            usual = median(self._norms)
            if norm > self.spike_factor * usual:
                return (
                    f"the gradient norm is {norm:.3g}, more than {self.spike_factor:g} times the "
                    f"usual {usual:.3g},"
                )
        return None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a resumed run decides as an uninterrupted one."""
        norms = list(self._norms)
        return {"skipped": self.skipped, "in_a_row": self._in_a_row, "norms": norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.skipped = state["skipped"]
        self._in_a_row = state["in_a_row"]
        self._norms = deque(state["norms"], maxlen=KEPT)
