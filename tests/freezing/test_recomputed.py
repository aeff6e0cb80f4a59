"""Compiled and checkpointed models under sharding engines, against one plain process."""

import pytest
import torch
from forked_ranks import run_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from freezetrain.freezing import freeze
from freezetrain.regions import Region
from freezetrain.training.checkpointed import checkpoint_blocks

pytest.importorskip("deepspeed")

STEPS, RATIO = 3, 0.1


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        use_cache=False,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).train()


def batch() -> torch.Tensor:
    return torch.randint(40, (4, 12), generator=torch.Generator().manual_seed(1))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def add_one(counts: list[int], place: int) -> None:
    counts[place] += 1


def losses_of(rank: int, world: int, engine: str, way: str) -> list[float]:
    import deepspeed

    model = tiny_llama()
    region = Region.random(model, RATIO, seed=0)
    runs = [0] * len(model.model.layers)
    if way == "checkpointed":
        checkpoint_blocks(model, 2)
        for place, block in enumerate(model.model.layers):
            block.mlp.register_forward_pre_hook(lambda *_, place=place: add_one(runs, place))
    elif "checkpointed" in way:
        model.gradient_checkpointing_enable({"use_reentrant": "reentrant" in way})
    optimizer = adamw(model)
    if engine == "fsdp2":
        for layer in model.model.layers:
            if "compiled" in way:
                layer.compile(backend="aot_eager")
            fully_shard(layer)
        fully_shard(model)
        optimizer = adamw(model)
    else:
        config = {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_clipping": 1.0,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": int(engine[-1])},
        }
        model, optimizer, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        if "compiled" in way:
            model.compile(backend="aot_eager")
    mine = batch()[rank::world]
    losses = []
    with freeze(model, optimizer, region, audit_every=1):
        for _ in range(STEPS):
            loss = model(input_ids=mine, labels=mine).loss
            losses.append(loss.item())
            if engine == "fsdp2":
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            else:
                model.backward(loss)
                model.step()
    if way == "checkpointed":
        assert runs == [2 * STEPS, STEPS], "the first of two blocks is computed again"
    return losses


@pytest.fixture(scope="module")
def expected() -> list[float]:
    """A plain loop that masks, steps, and writes the frozen values back."""
    model = tiny_llama()
    masks = Region.random(model, RATIO, seed=0).masks()
    optimizer = adamw(model)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(STEPS):
        loss = model(input_ids=batch(), labels=batch()).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            parameter.grad.masked_fill_(masks[name], 0.0)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.where(masks[name], kept[name], parameter))
    return losses


CELLS = [  # compiling under ZeRO takes half a minute
    ("fsdp2", "checkpointed"),
    ("zero-2", "checkpointed"),
    ("zero-3", "checkpointed"),
    *(("fsdp2", way) for way in ("checkpointed-reentrant", "compiled", "compiled-checkpointed")),
    *(("zero-2", way) for way in ("checkpointed-reentrant", "compiled")),
    *(("zero-3", way) for way in ("checkpointed-reentrant", "compiled-checkpointed")),
]


@pytest.mark.parametrize(
    ("engine", "way"),
    [
        pytest.param(*cell, marks=() if cell[1] == "checkpointed" else pytest.mark.exhaustive)
        for cell in CELLS
    ],
)
def test_losses_are_those_of_a_plain_loop(expected: list[float], engine: str, way: str) -> None:
    first, second = run_ranks(losses_of, engine, way, timeout=250)  # halves of one batch
    mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    assert mean == pytest.approx(expected, rel=1e-5)
