"""Muon for matrices and AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from freezetrain.errors import UserError


class MuonWithAdamW(Optimizer):
    """PyTorch's Muon (Jordan et al. 2024) for some groups, its AdamW for the others.

    Both have their groups and states in this one's, so that a schedule, a checkpoint and a freeze
    find all of them here. Muon's updates are scaled to the root mean square that AdamW's have (Liu
    et al. 2025, arXiv 2502.16982), unless ``adjust_lr_fn`` says otherwise, so that one learning
    rate fits both.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        inner: Sequence[bool],
        betas: tuple[float, float],
        **more: Any,
    ) -> None:
        """``groups``: each with ``lr`` and ``weight_decay``; ``inner``: whether Muon steps it.

        UserError where torch has no Muon, or no matrix is trained.
        """
        kind = getattr(torch.optim, "Muon", None)
        if kind is None:
            raise UserError(
                f"optimization.optimizer muon needs torch 2.9 or newer, and this is "
                f"{torch.__version__}; upgrade it, or use adamw"
            )
        matrices = [group for group, of_muon in zip(groups, inner, strict=True) if of_muon]
        others = [group for group, of_muon in zip(groups, inner, strict=True) if not of_muon]
        if not matrices:
            raise UserError(
                "optimization.optimizer muon found no matrix to train in the model's decoder "
                "blocks; use adamw"
            )
        muon = kind(matrices, **{"adjust_lr_fn": "match_rms_adamw", **more})
        self.optimizers: list[Optimizer] = [muon]
        if others:
            self.optimizers.append(AdamW(others, betas=betas))
        self._inner = list(inner)
        # In the order given, whose first group is the one that is looked at.
        super().__init__(list(groups), {})
        self._share()

    def _share(self) -> None:
        """Give both the states and groups that are here."""
        for optimizer, of_muon in zip(self.optimizers, (True, False), strict=False):
            mine = zip(self.param_groups, self._inner, strict=True)
            optimizer.param_groups = [group for group, inner in mine if inner == of_muon]
            optimizer.state = self.state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As a checkpoint is loaded, which puts others in their place."""
        super().__setstate__(state)
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss
