"""What the freeze and its audit add to a training step: ``python benchmarks/audit_cost.py``.

Three ways of training one model take turns, step by step, in one process: no freeze, a freeze
without audits, and a freeze that is audited at every step; then ``verify()`` alone. Printed as
JSON: medians over the rounds, and their ratios to the step without a freeze. With
``audit_every=n`` an audit's share is what it adds, divided by n.
"""

import json
import statistics
import time

import torch
from jsonargparse import CLI
from transformers import LlamaConfig, LlamaForCausalLM

from freezetrain import Region, freeze


def measure(
    ratio: float = 0.01,
    hidden: int = 384,
    layers: int = 8,
    sequences: int = 4,
    tokens: int = 512,
    rounds: int = 15,
    device: str = "cpu",
) -> None:
    """Train and time.

    Args:
        ratio: share of each decoder matrix that is frozen.
        hidden: width of the model.
        layers: decoder blocks of the model.
        sequences: sequences in a batch.
        tokens: tokens in a sequence.
        rounds: timed steps of each way.
        device: where to train.
    """
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
    )
    torch.manual_seed(0)
    ways: dict[str, tuple[LlamaForCausalLM, torch.optim.Optimizer]] = {}
    for name, every in {"no freeze": None, "freeze": 0, "freeze, audited each step": 1}.items():
        model = LlamaForCausalLM(config).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
        if every is not None:
            region = Region.random(model, ratio, seed=0, parameters=["model.layers.*_proj.weight"])
            handle = freeze(model, optimizer, region, audit_every=every)
        ways[name] = model, optimizer
    batch = torch.randint(config.vocab_size, (sequences, tokens), device=device)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first is not counted
        for name, (model, optimizer) in ways.items():
            start = time.perf_counter()
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    looks = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        handle.verify()
        looks.append(time.perf_counter() - start)
    plain = statistics.median(seconds["no freeze"][1:])
    found = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "frozen_entries": region.count,
        "seconds": {name: statistics.median(values[1:]) for name, values in seconds.items()},
    }
    # The values' part of an audit, timed by itself.
    found["seconds"]["verify"] = statistics.median(looks[1:])
    found["ratio"] = {name: value / plain for name, value in found["seconds"].items()}
    # Of each round, so that what slows the machine for a while slows all three.
    rounds_of = list(zip(*(values[1:] for values in seconds.values()), strict=True))
    found["ratio_quartiles"] = {
        name: statistics.quantiles([r[place] / r[0] for r in rounds_of])
        for place, name in enumerate(seconds)
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    CLI(measure, as_positional=False)
