"""Tiny models, texts, and the scores of design.md §3 by plain loops in fp64."""

import copy

import torch
import transformers
from torch import Tensor, nn

SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=3),
    "gpt2": transformers.GPT2Config(  # with dropout, which scoring must switch off
        vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    ),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name])
    with torch.no_grad():  # away from the tiny initial values, so that every gradient counts
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.train()


def text(*rows: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(40, (count, 7), generator=generator) for count in rows]


def mean_nll(model: nn.Module, rows: Tensor) -> Tensor:
    """The mean next-token loss, one token at a time."""
    log_probabilities = model(input_ids=rows).logits.log_softmax(-1)
    losses = [
        -log_probabilities[row, place, rows[row, place + 1]]
        for row in range(rows.shape[0])
        for place in range(rows.shape[1] - 1)
    ]
    return torch.stack(losses).mean()


def reference_of(model: nn.Module) -> nn.Module:
    """A copy in fp64 without dropout; experts in a plain loop, as fused kernels know no fp64."""
    model = copy.deepcopy(model).double().eval()
    model.set_experts_implementation("eager")
    return model


def loop_scores(model: nn.Module, batches: list[Tensor], method: str) -> dict[str, Tensor]:
    """The gradient scores of design.md §3, word by word, in fp64."""
    model = reference_of(model)
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in batches:
        share = len(batch) / len(batches[0])
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(mean_nll(model, batch), list(named.values()))
        for (name, weight), gradient in zip(named.items(), gradients, strict=True):
            if method == "taylor":
                totals[name] += share * gradient
            elif method == "taylor-abs":
                totals[name] += share * abs(weight.detach() * gradient)
            else:
                totals[name] += share * gradient**2
    if method == "taylor":
        return {name: abs(p.detach() * totals[name]) for name, p in model.named_parameters()}
    return totals


def assert_scores_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float32
    assert expected.max() > 0
    scale = float(expected.max())
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=2e-6 * scale)
