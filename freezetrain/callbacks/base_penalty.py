"""A penalty on moving away from the base: L2-SP, or with importances EWC."""

import math
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from freezetrain.callbacks.freeze import RegionFreeze
from freezetrain.callbacks.trained import base_weights, require_whole, trained, wide
from freezetrain.errors import UserError
from freezetrain.regions import Entries, Scores
from freezetrain.regions.base import fingerprint
from freezetrain.regions.resolve import all_parameters, find_prefix, find_submodule, full_shape


class BasePenalty(L.Callback):
    """Adds strength · F · (θ − θ₀) to the gradient of each trainable parameter, once a step.

    That is the gradient of strength/2 · Σ F (θ − θ₀)², with θ₀ the weights that the module has at
    ``setup``, before a checkpoint is restored. Without ``importance`` F is 1: L2-SP, Li et al.
    2018 (arXiv 1802.01483). With it F is the importance divided by its mean over all its weights,
    and 0 for parameters that it lacks: with the diagonal Fisher information EWC, Kirkpatrick et
    al. 2017 (arXiv 1612.00796). It is added after gradients have been reduced and before they are
    clipped; frozen entries of a RegionFreeze are not pulled. The value is logged as
    ``train/penalty``, in the loss's unit, and is not in ``train/loss``.

    Costs a copy of the trainable weights beside them, and as much in fp32 for an importance.
    UserError for a negative strength, for importances of another model or none above 0, and for
    other strategies than one device and DDP.
    """

    def __init__(self, strength: float, importance: Scores | None = None) -> None:
        if not (math.isfinite(strength) and strength >= 0):
            raise UserError(f"the strength of a penalty must be 0 or more, got {strength}")
        self.strength = strength
        self.importance = importance
        self._base: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole(trainer.strategy, type(self).__name__)
        if self.importance is not None:
            check_importance(self.importance, pl_module, check_base=True)
        self._base = base_weights(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, parameter in trained(pl_module):
            self._base[name] = self._base[name].to(parameter.device, parameter.dtype)
        if self.importance is not None:
            self._factors = _factors(self.importance, pl_module)

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any
    ) -> None:
        frozen = _frozen(trainer)
        total = torch.zeros((), device=pl_module.device)
        for name, parameter in trained(pl_module):
            if self.importance is not None and name not in self._factors:
                continue
            moved = wide(parameter) - wide(self._base[name])
            for entries in frozen.get(id(parameter), ()):
                entries.fill(moved, 0.0)  # set to a value, or frozen later than the run began
            pull = moved * self.strength
            if self.importance is not None:
                pull.mul_(self._factors[name])
            total += (pull * moved).sum() / 2
            if parameter.grad is None:
                parameter.grad = pull.to(parameter.dtype)
            else:
                parameter.grad.add_(pull)
        pl_module.log("train/penalty", total)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._base, self._factors = {}, {}


def check_importance(scores: Scores, model: nn.Module, check_base: bool = False) -> None:
    """UserError unless ``model`` has the parameters of ``scores`` and, if asked, is their base."""
    parameters, prefix = all_parameters(model), _prefix(scores, model)
    for name in scores:
        there = full_shape(parameters[prefix + name])
        if scores.shape(name) != there:
            raise UserError(
                f"the scores have {name!r} of shape {list(scores.shape(name))}, the model of shape "
                f"{list(there)}; give scores of the model that is trained"
            )
    if check_base and scores.base is not None:
        if fingerprint(find_submodule(scores, model)) == scores.base.fingerprint:
            return
        raise UserError(
            f"the scores were made for another model, {scores.base.name or 'unnamed'} with the "
            f"fingerprint {scores.base.fingerprint[:12]}; give scores of the model that is trained"
        )


def _prefix(scores: Scores, model: nn.Module) -> str:
    """What stands before the names of ``scores`` in ``model``."""
    try:
        return find_prefix(scores, model)
    except UserError as error:
        raise UserError(
            f"the scores name parameters that {type(model).__name__} lacks, of which the first is "
            f"{next(iter(scores))!r}; give scores of the model that is trained"
        ) from error


def _factors(scores: Scores, module: nn.Module) -> dict[str, Tensor]:
    """Name in the module -> scores of its parameter, divided by the mean of all."""
    names = {id(parameter): name for name, parameter in trained(module)}
    parameters, prefix = all_parameters(module), find_prefix(scores, module)
    factors: dict[str, Tensor] = {}
    total, count = 0.0, 0
    for name in scores:
        values, parameter = scores[name], parameters[prefix + name]
        total += values.sum(dtype=torch.float64).item()
        count += values.numel()
        if id(parameter) in names:
            factors[names[id(parameter)]] = values.to(parameter.device, copy=True)
    if not total > 0:
        raise UserError(
            "expected scores with a mean above 0 to weigh a penalty by, got none; score more text"
        )
    return {name: values.mul_(count / total) for name, values in factors.items()}


def _frozen(trainer: L.Trainer) -> dict[int, list[Entries]]:
    """Id of a parameter -> its entries that are frozen now."""
    found: dict[int, list[Entries]] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RegionFreeze) and callback.handle is not None:
            for shard in callback.handle.shards:
                found.setdefault(id(shard.owner), []).append(shard.entries)
    return found
