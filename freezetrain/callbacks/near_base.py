"""Callbacks that keep weights near the base: a penalty (L2-SP, EWC), and an average with it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, float32, nn, promote_types

from freezetrain.callbacks.region_freeze import RegionFreeze, require_whole
from freezetrain.callbacks.tracker import log_now
from freezetrain.errors import UserError
from freezetrain.freezing.layout import Shard
from freezetrain.regions import fingerprint
from freezetrain.regions.parameters import all_parameters, find_prefix, find_submodule, full_shape
from freezetrain.scoring import Scores


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters with their names, a tied one once."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def wide(values: Tensor) -> Tensor:
    """In fp32, or in fp64 where they are."""
    return values.to(promote_types(values.dtype, float32))


def base_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU, of the trainable parameters as they are now; UserError for none."""
    copies = {name: p.detach().to("cpu", copy=True) for name, p in trained(module)}
    if not copies:
        raise UserError(
            f"expected {type(module).__name__} to have its trainable parameters by the hook setup, "
            "found none; build the model in __init__"
        )
    return copies


def frozen_shards(trainer: L.Trainer) -> dict[int, list[Shard]]:
    """Id of a parameter -> what the trainer's RegionFreeze callbacks hold of it now."""
    shards: dict[int, list[Shard]] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RegionFreeze) and callback.handle is not None:
            for shard in callback.handle.shards:
                shards.setdefault(id(shard.owner), []).append(shard)
    return shards


class BaseAverage(L.Callback):
    """Holds the base, to give base + share · (trained − base) when it is asked for.

    WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903. The base is what the module holds at
    ``setup``, before a checkpoint is restored; its trainable parameters are copied to the CPU.
    An entry that has not moved keeps its bits. Training itself does not change.

    UserError for a share outside (0, 1), and for other strategies than one device and DDP.
    """

    def __init__(self, share: float) -> None:
        if not 0 < share < 1:
            raise UserError(f"the share of the trained weights must be in (0, 1), got {share}")
        self.share = share
        self._base: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            require_whole(trainer.strategy, type(self).__name__, "compare weights with the base's")
            self._base = base_weights(pl_module)

    @contextmanager
    def averaged(self, module: L.LightningModule) -> Iterator[None]:
        """The module's weights are the average here, and come back bit for bit.

        Call it on every rank, also once training has ended, with the module that was trained.
        UserError before a fit.
        """
        if not self._base:
            raise UserError("there is no base before a fit to average with: train first")
        kept = base_weights(module)
        try:
            with torch.no_grad():
                for name, parameter in trained(module):
                    parameter.copy_(self._between(name, parameter))
            yield
        finally:
            with torch.no_grad():
                for name, parameter in trained(module):
                    parameter.copy_(kept[name])

    def _between(self, name: str, parameter: Tensor) -> Tensor:
        base = self._base[name].to(parameter.device, parameter.dtype)
        between = wide(base) + self.share * (wide(parameter) - wide(base))
        # -0.0 plus 0.0 is 0.0, and what is infinite less itself is no number.
        return torch.where(parameter == base, wide(parameter), between)


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
        require_whole(trainer.strategy, type(self).__name__, "compare weights with the base's")
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
        frozen = frozen_shards(trainer)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        total = torch.zeros((), device=pl_module.device)
        for name, parameter in trained(pl_module):
            if self.importance is not None and name not in self._factors:
                continue
            moved = wide(parameter) - wide(self._base[name])
            for shard in frozen.get(id(parameter), ()):
                shard.entries.fill(moved, 0.0)  # set to a value, or frozen later than the run began
            pull = moved * self.strength
            if self.importance is not None:
                pull.mul_(self._factors[name])
            total += (pull * moved).sum() / 2
            if id(parameter) not in held:  # another optimizer's, which has its own turn
                continue
            if parameter.grad is None:
                parameter.grad = pull.to(parameter.dtype)
            else:
                parameter.grad.add_(pull)
        pl_module.log("train/penalty", total, logger=False)
        step, every = trainer.global_step + 1, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and step % every == 0:
            log_now(trainer, {"train/penalty": total}, step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._base, self._factors = {}, {}


def check_importance(scores: Scores, model: nn.Module, check_base: bool = False) -> None:
    """UserError unless ``model`` has the parameters of ``scores`` and, if asked, is their base."""
    parameters, prefix = all_parameters(model), _prefix(scores, model)
    for name in scores:
        shape = full_shape(parameters[prefix + name])
        if scores.shape(name) != shape:
            raise UserError(
                f"the scores have {name!r} of shape {list(scores.shape(name))}, the model of shape "
                f"{list(shape)}; give scores of the model that is trained"
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
