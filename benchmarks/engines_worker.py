"""What each rank of engines.py does. Rank 0 leaves what was measured in the file FOUND names."""

import gc
import json
import os
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import alternate
from freezetrain.freezing import Freeze, freeze
from freezetrain.regions import Region

MATRICES = ["model.layers.*_proj.weight"]
# Attributes of a freeze's objects that hold weights.
NOT_ITS_OWN = ("owner", "_parameters", "_model", "optimizers", "inner", "_inner")


def make_model(size: Mapping[str, Any]) -> LlamaForCausalLM:
    """The same random weights on every rank, in ``size["dtype"]``."""
    torch.manual_seed(0)
    heads = max(1, size["hidden"] // 64)
    config = LlamaConfig(
        vocab_size=size["rows"],
        hidden_size=size["hidden"],
        intermediate_size=size["inner"],
        num_hidden_layers=size["layers"],
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(getattr(torch, size["dtype"]))


def make_region(model: nn.Module, kind: str, ratio: float) -> Region:
    """That share of every decoder matrix: ``entries``, ``columns`` or whole ``tensors``.

    Of whole tensors it is every so many of them.
    """
    names = [name for name, _ in model.named_parameters() if name.endswith("_proj.weight")]
    if kind == "entries":
        return Region.random(model, ratio, seed=0, parameters=MATRICES)
    if kind == "tensors":
        return Region.tensors(model, names[:: round(1 / ratio)])
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    source = torch.Generator().manual_seed(0)
    columns = {}
    for name in names:
        width = shapes[name][-1]
        columns[name] = torch.randperm(width, generator=source)[: round(ratio * width)]
    return Region.columns(model, columns)


def make_engine(model: nn.Module, stage: int, accumulate: int, sequences: int, dtype: str) -> Any:
    """A DeepSpeed engine of this ZeRO stage, with clipping."""
    import deepspeed

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)
    config = {
        "train_micro_batch_size_per_gpu": sequences,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": dtype == "bfloat16"},
    }
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]


def held_bytes(handle: Freeze) -> dict[str, int]:
    """What a freeze holds on this rank at rest, in bytes.

    ``entries``: all indices and masks, those of the region included; ``guarded``: of those, what
    says which entries this rank's optimizer steps; ``values``: the start's, kept for audits.
    """
    every = distinct(handle)
    return {
        "entries": nbytes(tensor for tensor in every if not tensor.is_floating_point()),
        "guarded": nbytes(t for t in distinct(handle.shards) if not t.is_floating_point()),
        "values": nbytes(tensor for tensor in every if tensor.is_floating_point()),
    }


def distinct(*held: Any) -> list[Tensor]:
    """The tensors that freezetrain's objects hold, each once; not weights, the model's own."""
    found: dict[int, Tensor] = {}
    seen: dict[int, Any] = {}  # objects stay alive, so that no other gets their id
    left = list(held)
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, Tensor):
            found[one.untyped_storage().data_ptr()] = one
        elif isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list | tuple | set):
            left += one
        elif type(one).__module__.startswith("freezetrain"):
            left += [value for name, value in vars(one).items() if name not in NOT_ITS_OWN]
    return list(found.values())


def nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def train(engine: Any, batches: list[Tensor]) -> None:
    """One optimizer step."""
    for batch in batches:
        engine.backward(engine(input_ids=batch, labels=batch).loss)
        engine.step()


def take_turns(
    engines: Mapping[str, Any],
    handles: Mapping[str, Freeze],
    batches: list[Tensor],
    rounds: int,
    audited: bool,
    device: str,
) -> dict[str, Any]:
    """Of each way in each round: seconds of a step, and those of them inside the freeze.

    Both of the rank that took longest.
    """
    inside: dict[str, list[float]] = {name: [] for name in engines}

    def step(name: str) -> None:
        before = handles[name].seconds if name in handles else 0.0
        train(engines[name], batches)
        after = handles[name].seconds if name in handles else 0.0
        inside[name].append(after - before)

    ways = {name: partial(step, name) for name in engines}
    if audited:  # the first two steps are: this one, and that of the untimed round
        for way in ways.values():
            way()
    seconds = alternate(ways, rounds, device=device, before=dist.barrier)
    found = {}
    for name, spent in seconds.items():
        slowest = torch.tensor([spent, inside[name][-rounds:]], device=batches[0].device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        found[name] = dict(zip(("seconds", "inside"), slowest.tolist(), strict=True))
    return found


def run_case(
    size: dict[str, Any],
    device: str,
    ways: Mapping[str, tuple[str, float] | None],
    stage: int,
    accumulate: int,
    sequences: int,
    audited: bool,
    rounds: int,
) -> dict[str, Any]:
    """Every way trains an engine of its own; all of them live in the same processes.

    ``sequences``: in a micro-step of each process. ``audited``: as by default, else never.
    """
    engines, handles, regions = {}, {}, {}
    for name, way in ways.items():
        model = make_model(size)
        if way is not None:
            regions[name] = make_region(model, *way)
        engines[name] = make_engine(model, stage, accumulate, sequences, size["dtype"])
    for name, region in regions.items():
        handles[name] = freeze(engines[name], None, region, audit_every=100 if audited else 0)
    source = torch.Generator().manual_seed(1 + dist.get_rank())
    shape = (accumulate, sequences, size["tokens"])
    batches = list(torch.randint(size["rows"], shape, generator=source).to(device))
    found = take_turns(engines, handles, batches, rounds, audited, device)
    for name, handle in handles.items():
        handle.verify()  # what was timed did freeze
        ranks: list = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, held_bytes(handle))
        region = regions[name]
        stored = sum(entries.nbytes for entries in region.values())
        found[name] |= {"held": ranks, "count": region.count, "region": stored}
    for engine in engines.values():
        engine.destroy()
    return {
        "accumulate": accumulate,
        "tokens": dist.get_world_size() * sequences * size["tokens"],
        "parameters": parameters_of(size),
        "ways": found,
    }


def parameters_of(size: dict[str, Any]) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in make_model(size).parameters())


def main(size: dict[str, Any], device: str, cases: dict[str, Any]) -> None:
    """``cases``: name → what :func:`run_case` takes further."""
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    deepspeed.init_distributed("nccl" if device == "cuda" else "gloo")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    found = {}
    for name, case in cases.items():
        found[name] = run_case(size, device, **case)
        gc.collect()
    if dist.get_rank() == 0:
        Path(os.environ["FOUND"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a regular exit
