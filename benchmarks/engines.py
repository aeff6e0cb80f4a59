"""What a freeze adds to a whole training step under DeepSpeed ZeRO-2 and ZeRO-3 on two processes
(forward, backward, reduction, clipping, AdamW, gathering), as a ratio, and the share of the step
that mask and guard take by their own clock; and what the rank that holds most has at rest for each
entry of the region. The mask needs the whole region on every rank, the guard the rank's own part.

On CPUs over gloo, one thread a process; with a GPU, one process for each and 16 bits. The ranks run
this module: rank 0 leaves what was measured in the file that FOUND names.
"""

import gc
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.harness import Options, Results, Row, alternate, ratios, shown, spread
from freezetrain.freezing import Freeze, freeze
from freezetrain.regions import Region

TITLE = "Freezing under ZeRO-2 and ZeRO-3"
ROOT = Path(__file__).parents[1]

Size = dict[str, Any]
CPU: Size = {
    "hidden": 384, "inner": 1024, "layers": 4, "rows": 4096, "tokens": 512,
    "dtype": "float32",
}  # fmt: skip
CUDA: Size = {
    "hidden": 1024, "inner": 2816, "layers": 16, "rows": 32000, "tokens": 1024,
    "dtype": "bfloat16",
}  # fmt: skip
NONE, AGAIN, GOAL = "no freeze", "no freeze, again", "1% of entries"
WAYS: dict[str, tuple[str, float] | None] = {
    NONE: None,
    AGAIN: None,  # says how far two equal things are apart here
    "0.1% of entries": ("entries", 0.001),
    GOAL: ("entries", 0.01),
    "5% of entries": ("entries", 0.05),
    "20% of entries": ("entries", 0.2),
    "50% of columns": ("columns", 0.5),
    "half of the tensors, whole": ("tensors", 0.5),
}
# Name → ZeRO stage, micro-steps a step, sequences of each process in a micro-step, ways. With 16
# micro-steps they are half as large, which makes the mask's share twice as large, and few rounds
# are timed.
CASES: dict[str, dict[str, Any]] = {
    f"ZeRO-{stage}, accumulation {accumulate}": {
        "stage": stage, "accumulate": accumulate, "audited": accumulate == 1, **more,
        "ways": {name: WAYS[name] for name in names},
    }
    for accumulate, names, more in (
        (1, list(WAYS), {"sequences": 2}),
        (16, [NONE, GOAL], {"sequences": 1, "rounds": 3}),
    )
    for stage in (2, 3)
}  # fmt: skip


def on_ranks(world: int, module: str, settings: dict[str, Any], device: str = "cpu") -> Any:
    """Run ``python -m module`` with ``settings``, as JSON, on ``world`` ranks of this machine.

    Returns what one of them left, as JSON, in the file that FOUND names. SystemExit with the end
    of what they printed where one fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TemporaryDirectory() as name:
        path = Path(name) / "found.json"
        environment = {
            **os.environ, "FOUND": str(path), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        if device == "cpu":
            environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(
            [
                sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world),
                "--master-addr", "127.0.0.1", "--master-port", str(port),
                "-m", module, json.dumps(settings),
            ],
            cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode or not path.is_file():
            sys.exit(
                f"{module} on {world} ranks failed:\n{done.stdout[-2000:]}{done.stderr[-6000:]}"
            )
        return json.loads(path.read_text())


def measure(options: Options) -> Results:
    if options.device == "cpu":
        return compare(CPU, 2, options)
    return compare(CUDA, torch.cuda.device_count(), options)


def compare(size: Size, world: int, options: Options, cases: dict[str, Any] = CASES) -> Results:
    """Raw figures of every way in every case, their ratios and shares."""
    settings = {
        "size": size,
        "device": options.device,
        "cases": {name: {"rounds": options.rounds, **case} for name, case in cases.items()},
    }
    measured = on_ranks(world, "benchmarks.engines", settings, options.device)
    for case in measured.values():
        add_ratios(case["ways"])
    return {"size": size, "world": world, "cases": measured}


def add_ratios(ways: dict[str, Any]) -> None:
    """Of each way its ratio, and the share of its step that its freeze takes by its own clock.

    The ratio is to the mean of the round's steps without a freeze.
    """
    seconds = {name: way["seconds"] for name, way in ways.items()}
    unfrozen = [seconds[name] for name in (NONE, AGAIN) if name in seconds]
    mean = {"mean": [statistics.mean(steps) for steps in zip(*unfrozen, strict=True)]}
    for name, ratio in ratios({**seconds, **mean}, "mean").items():
        if name in ways:
            inside = zip(ways[name]["inside"], ways[name]["seconds"], strict=True)
            ways[name] |= {"ratio": ratio, "share": spread([own / step for own, step in inside])}
    if AGAIN in ways:
        ways[AGAIN]["ratio"] = ratios(seconds, NONE)[AGAIN]


def rows(figures: Results) -> list[Row]:
    """Per case and region: the step's ratio; then bytes an entry on the rank that holds most."""
    times, memory = [], []
    for name, case in figures["cases"].items():
        ways = case["ways"]
        step = statistics.median(ways[NONE]["seconds"])
        about = (
            f"{name} ({figures['world']} processes, {case['parameters'] / 1e6:.1f} million "
            f"weights, {case['tokens']:,} tokens a micro-step, {step:.2f} s a step)"
        )
        noise = ways.get(AGAIN)
        if noise is not None:
            what = f"{about}: a step without a freeze, by another such step"
            times.append(Row(what, shown(noise["ratio"])))
            about = name
        for region, way in ways.items():
            if "count" in way:
                times.append(_time(f"{about}: {region}", way, region == GOAL, noise))
                about = name
                if case["accumulate"] == 1:  # it is the same with more
                    memory.append(_memory(f"{name.partition(',')[0]}, memory: {region}", way))
    return times + memory


def _time(what: str, way: dict[str, Any], main: bool, noise: dict[str, Any] | None) -> Row:
    limit = 1.01 if main else 1.03
    inside = way["share"]["median"]
    figure = f"{shown(way['ratio'])}; mask and guard {inside:.2%}"
    met = way["ratio"]["median"] <= limit
    note = ""
    if not met:
        note = f"mask and guard alone: {1 + inside:.4f}"
        if inside < limit - 1 and noise is not None:
            note += f"; two equal steps: {shown(noise['ratio'])}"
    return Row(what, figure, f"at most {limit}", met, note)


def _memory(what: str, way: dict[str, Any]) -> Row:
    most = max(way["held"], key=lambda rank: rank["entries"])
    each, guarded, values, stored = (
        part / way["count"]
        for part in (most["entries"], most["guarded"], most["values"], way["region"])
    )
    met = each <= 4
    figure = f"{each:.2f} bytes an entry at rest, {values:.2f} for audits"
    note = ""
    if not met:
        note = f"{stored:.2f} the mask, {guarded:.2f} the guard"
        if each - stored - guarded >= 0.005:
            note += f", {each - stored - guarded:.2f} indices made of bits"
    return Row(what, figure, "at most 4 bytes", met, note)


MATRICES = ["model.layers.*_proj.weight"]
# Attributes of a freeze's objects that hold weights.
NOT_ITS_OWN = ("owner", "parameter", "_parameters", "_model", "optimizers", "inner", "_inner")


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
    tensors: dict[int, Tensor] = {}
    seen: dict[int, Any] = {}  # objects stay alive, so that no other gets their id
    left = list(held)
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = item
        if isinstance(item, Tensor):
            tensors[item.untyped_storage().data_ptr()] = item
        elif isinstance(item, Mapping):
            left += item.values()
        elif isinstance(item, list | tuple | set):
            left += item
        elif type(item).__module__.startswith("freezetrain"):
            left += [value for name, value in vars(item).items() if name not in NOT_ITS_OWN]
    return list(tensors.values())


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
    figures = {}
    for name, spent in seconds.items():
        slowest = torch.tensor([spent, inside[name][-rounds:]], device=batches[0].device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        figures[name] = dict(zip(("seconds", "inside"), slowest.tolist(), strict=True))
    return figures


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
    figures = take_turns(engines, handles, batches, rounds, audited, device)
    for name, handle in handles.items():
        handle.verify()  # what was timed did freeze
        ranks: list = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, held_bytes(handle))
        region = regions[name]
        stored = sum(entries.nbytes for entries in region.values())
        figures[name] |= {"held": ranks, "count": region.count, "region": stored}
    for engine in engines.values():
        engine.destroy()
    return {
        "accumulate": accumulate,
        "tokens": dist.get_world_size() * sequences * size["tokens"],
        "parameters": parameters_of(size),
        "ways": figures,
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
    figures = {}
    for name, case in cases.items():
        figures[name] = run_case(size, device, **case)
        gc.collect()
    if dist.get_rank() == 0:
        Path(os.environ["FOUND"]).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort a regular exit
