"""The LightningModule around a Hugging Face causal language model."""

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from transformers import PreTrainedModel

from freezetrain.errors import CheckError
from freezetrain.nll import token_nll
from freezetrain.recipe import Optimization
from freezetrain.training.optimizer import build_optimizer


class CausalLM(L.LightningModule):
    """Next-token training of ``model`` on batches [B, L] of token ids.

    Logs, for each optimizer step, the mean loss of its micro-batches (nats per token), the
    gradient norm before clipping and the learning rate; and the tokens seen. A loss or gradient
    norm that is not finite raises CheckError before the optimizer's step, so that it reaches
    neither the weights nor a checkpoint.
    """

    def __init__(self, model: PreTrainedModel, settings: Optimization) -> None:
        super().__init__()
        self.model = model
        self.settings = settings
        self._losses: list[Tensor] = []  # of the micro-batches since the last step

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        # Dropout depends on seed, batch and rank alone, so that a resumed run repeats it exactly.
        seeds = np.random.SeedSequence([self.settings.seed, batch_idx, self.global_rank])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        logits = self.model(input_ids=batch, use_cache=False).logits
        loss = token_nll(logits, batch).mean()
        self._require_finite("loss", loss, batch_idx)
        tokens = (batch_idx + 1) * batch.numel() * self.trainer.world_size
        self._losses.append(loss.detach())
        self.log("train/tokens", float(tokens))
        return loss

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        norm = clip_grad_norm_(self.parameters(), gradient_clip_val or float("inf"))
        self._require_finite("gradient norm", norm, self.trainer.fit_loop.batch_idx)
        self.log("train/loss", torch.stack(self._losses).mean(), prog_bar=True)
        self._losses.clear()
        self.log("train/gradient_norm", norm)
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer, schedule = build_optimizer(self.model, self.settings)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _require_finite(self, what: str, value: Tensor, batch_idx: int) -> None:
        if not torch.isfinite(value):
            raise CheckError(
                f"the {what} is {value.item()} at step {self.global_step + 1}, batch {batch_idx}; "
                "checkpoints so far are kept: lower the learning rate or look at that batch, then "
                "start anew"
            )
