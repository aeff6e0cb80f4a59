"""The LightningModule around a Hugging Face causal language model."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer
from transformers import PreTrainedModel

from freezetrain.callbacks.tracker import log_now
from freezetrain.errors import UserError
from freezetrain.forward import eval_mode, reshard
from freezetrain.head.find import Head, find_head
from freezetrain.head.inside import inside, joined
from freezetrain.head.loss import head_loss
from freezetrain.head.tied import Shared, shared_gradient
from freezetrain.nll import next_token_nll
from freezetrain.recipe.optimization import Optimization
from freezetrain.training.engines import optimizer_device
from freezetrain.training.optimizer import BadSteps, build_optimizer
from freezetrain.training.optimizer_kinds import require_split
from freezetrain.training.rehearsed import Compared

Load = Callable[[L.LightningModule], PreTrainedModel]


class CausalLM(L.LightningModule):
    """Next-token training of ``model`` on the batches of SequenceLoader.

    ``model`` is one in memory, or, for engines that split it over ranks, a function that loads it
    once they have started (``load(module)``).

    The loss of an optimizer step is the sum of NLL, computed in fp32, of all labels that its
    micro-batches have on all ranks, divided by their number: each token weighs the same, however
    many of them a sequence, a micro-batch or a rank has. It goes to the progress bar after each
    step (nats per token), and to the loggers at the trainer's log interval, with the gradient norm
    before clipping, the learning rate and the tokens seen. What is not finite is found on all ranks
    alike, before it reaches a checkpoint, see BadSteps.

    Where sequences of the base are rehearsed by KL, the sum of KL(base ‖ model) at their places is
    added to that of NLL, and the places count as labels do. The loss that is logged stays the mean
    NLL of the labels; the mean KL of the places since it was logged last is logged beside it, in
    nats per token. ``teacher``: the base, where KL is over the whole vocabulary.
    """

    def __init__(
        self,
        model: PreTrainedModel | Load,
        settings: Optimization,
        steps: int,
        teacher: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.load: Load | None = None
        if isinstance(model, PreTrainedModel):
            self.model = model
        else:
            self.load = model
        self.settings = settings
        self.steps = steps
        self.bad_steps = BadSteps(settings.bad_steps, settings.spike_factor)
        self.compared = Compared(teacher)
        self._sums = torch.zeros(2)  # NLL and KL since the last step, on this rank
        self._head: Head | None = None
        self._shared: Shared | None = None

    def configure_model(self) -> None:
        if self.load is not None:
            self.model = self.load(self)
            self.model.train()
            self.load = None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.bad_steps.load_state_dict(checkpoint["bad_steps"])
        if "compared" in checkpoint:
            self.compared.load_state_dict(checkpoint["compared"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bad_steps"] = self.bad_steps.state_dict()
        checkpoint["compared"] = self.compared.state_dict()

    def on_train_start(self) -> None:
        if self.settings.document_mask:
            with eval_mode(self.model):
                vocabulary: Any = self.model.get_input_embeddings().num_embeddings
                require_document_mask(self._logits, vocabulary, self.device)
            reshard(self.model)
        self._head = find_head(self.model)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # Dropout depends on the seed and on which micro-batch of all ranks this is, so that a
        # resumed run repeats it exactly.
        number = batch_idx * self.trainer.world_size + self.global_rank
        seeds = np.random.SeedSequence([self.settings.seed, number])
        seed = int(seeds.generate_state(1, np.uint64)[0])
        # Not torch.manual_seed, which formats the call stack for each kind of accelerator that
        # this machine does not have.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type != "cpu":
            torch.manual_seed(seed)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, sums = self._loss(batch)
        self._sums = self._sums.to(sums.device) + sums
        self._labels = batch["step_labels"].clamp(min=1)  # a step may hold the last token alone
        self._places = batch.get("step_compared", torch.zeros_like(batch["step_labels"]))
        # Engines divide by ranks and by micro-batches; Lightning by micro-batches, so that under
        # DeepSpeed, which does so itself, they are divided by twice.
        parts = self.trainer.world_size * self.trainer.accumulate_grad_batches
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):
            parts *= self.trainer.accumulate_grad_batches
        return loss * (parts / self._labels)

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """NLL of the labels plus KL of the rehearsed places, and both [2] without gradients."""
        inputs = batch["input_ids"], batch.get("position_ids")
        head, labels = self._head, batch["labels"]
        if head is None:
            logits = self._logits(*inputs)
            nll = next_token_nll(logits, labels).sum()
            kl = self.compared.kl(logits, batch, lambda base: self._logits(*inputs, base))
            return nll + kl, torch.stack([nll, kl]).detach()
        terms = self.compared.terms(
            labels.flatten(), batch, head.vocabulary, lambda base: self._output(*inputs, base)
        )
        losses: list[Tensor] = []

        alone = isinstance(self.trainer.strategy, SingleDeviceStrategy)
        with shared_gradient(self.model, head) if alone else nullcontext() as shared:

            def compute(hidden: Tensor) -> Tensor:
                total, each = head_loss(hidden, head, terms, shared)
                losses.extend(each)
                return total

            with inside(head, compute) as totals:
                output = self._output(*inputs)
        self._shared = shared
        sums = [values.sum() for values in losses]
        return joined(totals[0], output), torch.stack([sums[0], sum(sums[1:], 0 * sums[0])])

    def on_after_backward(self) -> None:
        if self._shared is not None and self._shared.gradient is not None:
            raise RuntimeError("the head's gradient was handed to an embedding and not taken")

    def on_train_end(self) -> None:
        self.compared.take(self.global_step)  # of steps after the last that was logged

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if isinstance(self.trainer.strategy, DeepSpeedStrategy):
            return  # it clips in its step
        norm = clip_grad_norm_(self.parameters(), gradient_clip_val or float("inf"))
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        sums = self._step_sums()
        if self._is_bad(sums, norm):
            optimizer.zero_grad(set_to_none=True)  # the optimizer leaves such parameters alone
        self._log_step(optimizer, sums, norm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Any,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        if not isinstance(self.trainer.strategy, DeepSpeedStrategy):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            optimizer.zero_grad()  # else they are there in the next forward pass and evaluation
            return None
        assert optimizer_closure is not None
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches:
            return super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        sums = torch.zeros(2)

        def checked() -> Any:
            nonlocal sums
            result = optimizer_closure()
            sums = self._step_sums()
            self._is_bad(sums, None)
            return result

        super().optimizer_step(epoch, batch_idx, optimizer, checked)
        norm = torch.as_tensor(self.trainer.strategy.deepspeed_engine.get_global_grad_norm())
        self._is_bad(sums, norm)  # after the update, and before a checkpoint
        self._log_step(self.trainer.optimizers[0], sums, norm)
        return None

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        first = next(self.model.parameters())
        if isinstance(first, DTensor):
            require_split(self.settings, first.device_mesh)
        optimizer, schedule = build_optimizer(
            self.model, self.settings, self.steps, optimizer_device(self.trainer.strategy)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _logits(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        model: PreTrainedModel | None = None,
    ) -> Tensor:
        """[B, L, V], of the model that is trained or of another ``model``."""
        logits = self._output(input_ids, position_ids, model).logits
        return logits.view(len(input_ids), -1, logits.shape[-1])

    def _output(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None,
        model: PreTrainedModel | None = None,
    ) -> Any:
        """What the model gives; documents are kept apart where ``position_ids`` start anew.

        Both are [B, L]; with flash attention rows are laid end to end, as one.
        """
        model = self.model if model is None else model
        if position_ids is None:
            return model(input_ids=input_ids, use_cache=False)
        if lays_end_to_end(model):
            input_ids, position_ids = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
        return model(input_ids=input_ids, position_ids=position_ids, use_cache=False)

    def _step_sums(self) -> Tensor:
        """NLL of the step's labels and KL of its rehearsed places, summed over all ranks."""
        total = self._sums.clone()
        if dist.is_initialized() and self.trainer.world_size > 1:
            dist.all_reduce(total)
        return total

    def _is_bad(self, sums: Tensor, norm: Tensor | None) -> bool:
        step, loss = self.global_step + 1, (sums.sum() / self._labels).item()
        return self.bad_steps.is_bad(loss, None if norm is None else norm.item(), step)

    def _log_step(self, optimizer: Optimizer, sums: Tensor, norm: Tensor) -> None:
        places, values = int(self._places), {}
        if not places or self._labels > places:
            values["train/loss"] = sums[0] / (self._labels - places)
            self.log("train/loss", values["train/loss"], prog_bar=True, logger=False)
        if places:
            self.compared.add(sums[1].item(), places)
        self._sums = torch.zeros_like(self._sums)
        step, every = self.global_step + 1, self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or step % every:
            return  # nobody would read them, and they take their time
        others: dict[str, Any] = {
            "train/gradient_norm": norm,
            "train/learning_rate": optimizer.param_groups[0]["lr"],
            "train/tokens": float(step * self.settings.step_tokens),
        }
        if (kl := self.compared.take(step)) is not None:
            others["train/rehearsal_kl"] = kl
        self.log_dict(others, logger=False)
        log_now(self.trainer, values | others, step)


_LENGTH = 8  # tokens of each of the two documents that are tried


def lays_end_to_end(model: PreTrainedModel) -> bool:
    """Whether rows must be laid end to end in one: flash attention looks for borders only there."""
    return "flash" in model.config._attn_implementation


def require_document_mask(
    forward: Callable[[Tensor, Tensor], Tensor], vocabulary: int, device: torch.device
) -> None:
    """UserError if tokens of one document change the logits of the next.

    ``forward(input_ids [B, L], position_ids [B, L])`` returns logits [B, L, V]. Models of
    transformers see where a document begins from positions that start anew; one that does not look
    (with a recurrent state, or with attention of its own) would mix documents without a word.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (2, 2 * _LENGTH), generator=generator)
    changed = tokens.clone()
    changed[:, :_LENGTH] = (tokens[:, :_LENGTH] + 1) % vocabulary  # another first document
    positions = torch.arange(_LENGTH).repeat(2, 2)
    with torch.no_grad():
        first, second = (
            forward(ids.to(device), positions.to(device))[:, _LENGTH:] for ids in (tokens, changed)
        )
    if not torch.allclose(first.float(), second.float(), rtol=1e-2, atol=1e-3):
        raise UserError(
            "this model does not keep the documents of a sequence apart when their positions start "
            "anew, so that document_mask would do nothing; leave it out"
        )
