"""Scoring the weights of a Llama against the forward and backward passes that it needs anyway, on
the same batches, with the same parameters asking for gradients.

Three copies of one model take turns: a plain loop that drops its gradients, scoring by ``taylor``
alone, and scoring by every method at once. Each runs one batch a turn; the sums of the scores are
allocated before the first turn, and finishing them, which is done once a language, is timed apart.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Options, Results, Row, alternate, finish, ratios, shown
from freezetrain.nll import token_nll
from freezetrain.scoring.compute import Scoring
from freezetrain.scoring.methods import METHODS, scored_parameters

TITLE = "Scoring"
GOAL = 1.05  # of forward and backward alone
WAYS = {"taylor": ["taylor"], "all methods": list(METHODS)}


@dataclass(frozen=True)
class Size:
    """A Llama and a batch for it."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int
    rows: int = 4
    tokens: int = 512
    dtype: torch.dtype = torch.float32


SIZES = {
    "cpu": Size(384, 1024, 8, 8192),
    "cuda": Size(2048, 8192, 16, 32000, rows=8, tokens=1024, dtype=torch.bfloat16),
}


def build(size: Size, device: str) -> LlamaForCausalLM:
    """Random weights, the same each time, in eval mode."""
    torch.manual_seed(0)
    heads = max(1, size.hidden // 64)
    config = LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=size.vocabulary,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(device, size.dtype).eval()


class Passes:
    """Forward and backward alone: gradients of what is scored are made, and dropped."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        wanted = {id(parameter) for parameter in scored_parameters(model, "taylor", None).values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in wanted)

    def add(self, batch: Tensor) -> None:
        ids = batch.to(self.model.device)
        token_nll(self.model(input_ids=ids).logits, ids).sum().backward()
        self.model.zero_grad()


def measured(size: Size, device: str, rounds: int) -> Results:
    """Seconds of a batch, and of finishing the scores of a language, by each way."""
    generator = torch.Generator().manual_seed(1)
    batch = torch.randint(size.vocabulary, (size.rows, size.tokens), generator=generator)
    plain = Passes(build(size, device))
    with ExitStack() as stack:
        scorings = {
            name: stack.enter_context(Scoring(build(size, device), methods))
            for name, methods in WAYS.items()
        }
        ways = {"forward and backward": plain, **scorings}
        seconds = alternate(
            {name: lambda way=way: way.add(batch) for name, way in ways.items()},
            rounds,
            device=device,
        )
        finishing = {name: _finishing(scoring, device) for name, scoring in scorings.items()}
    return {
        "parameters": plain.model.num_parameters(),
        "scored": sum(p.numel() for p in plain.model.parameters() if p.requires_grad),
        "dtype": str(size.dtype).removeprefix("torch."),
        "batch": [size.rows, size.tokens],
        "methods": WAYS,
        "seconds": seconds,
        "ratios": ratios(seconds, "forward and backward"),
        "finishing": finishing,
    }


def _finishing(scoring: Scoring, device: str) -> float:
    finish(device)
    start = time.perf_counter()
    for method in scoring.methods:
        for _ in scoring.tensors(method):
            pass
    return time.perf_counter() - start


def measure(options: Options) -> Results:
    return measured(SIZES[options.device], options.device, options.rounds)


def rows(figures: Results) -> list[Row]:
    what = (
        f"{figures['parameters'] / 1e6:,.0f}M parameters in {figures['dtype']}, "
        f"{figures['batch'][0]} × {figures['batch'][1]} tokens"
    )
    lines = []
    for name, methods in figures["methods"].items():
        ratio = figures["ratios"][name]
        met = ratio["median"] <= GOAL
        said = name if len(methods) == 1 else f"{name} ({', '.join(methods)})"
        lines.append(
            Row(
                f"{said}, time of forward and backward: {what}",
                shown(ratio),
                f"at most {GOAL}",
                met,
                "" if met else _reason(figures, name),
            )
        )
        lines.append(Row(f"{name}, finishing a language", f"{figures['finishing'][name]:.2f} s"))
    return lines


def _reason(figures: Results, name: str) -> str:
    """What was added, and to how many scores."""
    added = figures["ratios"][name]["median"] - 1
    by_gradient = sum(m in ("taylor", "taylor-abs", "fisher") for m in figures["methods"][name])
    return (
        f"{added:.1%} more: each batch adds gradients of {figures['scored'] / 1e6:,.0f}M weights "
        f"to sums, {by_gradient} a weight"
    )
