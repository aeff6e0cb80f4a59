"""The runs in test_recomputed.py: ``python recomputed_worker.py FOLDER``."""

import json
import os
import sys
from itertools import product
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed
import torch
from forked_workers import run_ranks
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from freezetrain.freezing import freeze
from freezetrain.regions import Region

STEPS, RATIO = 3, 0.1
ENGINES = ("fsdp2", "zero-2", "zero-3")
WAYS = ("checkpointed", "checkpointed-reentrant", "compiled", "compiled-checkpointed")


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


def losses_of(engine: str, way: str, rank: int, world: int) -> list[float]:
    model = tiny_llama()
    region = Region.random(model, RATIO, seed=0)
    if "checkpointed" in way:
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
    return losses


def work(rank: int, world: int, folder: Path) -> None:
    deepspeed.init_distributed("gloo")
    found = {
        f"{engine}-{way}": losses_of(engine, way, rank, world)
        for engine, way in product(ENGINES, WAYS)
    }
    (folder / f"losses-{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    run_ranks(folder / "store", 2, work, folder)
