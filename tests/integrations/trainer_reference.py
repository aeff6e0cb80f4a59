"""A tiny Llama, its data, and a plain loop in which frozen entries are constants."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from frozen_reference import Constants
from torch import Tensor, nn
from torch.func import functional_call
from transformers import LlamaConfig, LlamaForCausalLM

from freezetrain.regions import Region

STEPS, ACCUMULATE, ROWS, VOCABULARY = 6, 4, 2, 64
EPS = 1e-3  # of AdamW: of the size of gradients, so that their rounding does not grow
MAX_NORM, DECAY, RATE = 1.0, 0.1, 1e-2  # the norms that occur are above 1: clipping acts


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def llama_region(model: nn.Module) -> Region:
    """Of every parameter some entries; rows of the embedding; the final norm as a whole."""
    region = Region.random(model, 0.1, seed=0)
    region |= Region.rows(model, {"model.embed_tokens.weight": range(0, VOCABULARY, 3)})
    return region | Region.tensors(model, ["model.norm.weight"])


STRENGTH, STRONG = 10.0, 40.0  # of a pull: at RATE a tenth of the way in each step, and four


def strong_region(model: nn.Module) -> Region:
    """What is pulled more; a part of it is in :func:`llama_region` too."""
    return Region.random(model, 0.2, seed=1)


def strengths(model: nn.Module) -> dict[str, Tensor]:
    """Parameter name -> λ of each entry."""
    found = {name: torch.full_like(p.detach(), STRENGTH) for name, p in model.named_parameters()}
    for name, entries in strong_region(model).items():
        found[name][entries.mask()] = STRONG
    return found


def rows(steps: int = STEPS) -> Tensor:
    """Input tokens [steps x accumulation x rows, 9], in the order in which they are trained on."""
    source = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (steps * ACCUMULATE * ROWS, 9), generator=source)


def next_token_loss(logits: Tensor, input_ids: Tensor, reduction: str = "mean") -> Tensor:
    return F.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), input_ids[:, 1:].flatten(), reduction=reduction
    )


def decayed(name: str) -> bool:
    """The Trainer decays no norm."""
    return "norm" not in name


class Reference(Constants):
    """Trained by :meth:`train`: one optimizer step over all rows of it, clipped."""

    def __init__(self, model: nn.Module, region: Region, eps: float, decay_norms: bool) -> None:
        super().__init__(model, region)
        groups = [
            {
                "params": [
                    value
                    for name, value in self.free.items()
                    if value.numel() and (decayed(name) or decay_norms) == decays
                ],
                "weight_decay": DECAY if decays else 0.0,
            }
            for decays in (True, False)
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, eps=eps, foreach=False)
        self.norms: list[float] = []

    def train(self, steps: int = STEPS, after: Callable[[], None] | None = None) -> "Reference":
        """``after``: what is done after each step."""
        for batch in rows(steps).split(ACCUMULATE * ROWS):
            self.optimizer.zero_grad()
            logits = functional_call(self.model, self.weights(), (batch,)).logits
            next_token_loss(logits, batch).backward()
            self.norms.append(nn.utils.clip_grad_norm_(self.parameters(), MAX_NORM).item())
            self.optimizer.step()
            if after is not None:
                after()
        return self

    def pulled(self, strengths: dict[str, Tensor], base: dict[str, Tensor]) -> "Reference":
        """Trained, and after each step θ ← θ − min(1, η·λ)·(θ − θ₀) at trainable entries."""

        @torch.no_grad()
        def pull() -> None:
            for name, free in self.free.items():
                mask = ~self.masks[name]
                share = (RATE * strengths[name][mask]).clamp(max=1.0)
                free -= share.to(free) * (free - base[name][mask].to(free))

        return self.train(after=pull)

    def compare(self, weights: dict[str, Tensor], rtol: float, atol: float) -> None:
        """Frozen entries equal to the last bit, all others to rounding, and really trained."""
        expected = self.weights()
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            mask, start = self.masks[name], self.constants[name]
            assert torch.equal(value[mask], start[mask]), name
            torch.testing.assert_close(
                value, expected[name].detach(), rtol=rtol, atol=atol, msg=name
            )
            assert mask.all() or not torch.equal(value[~mask], start[~mask]), name


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}
