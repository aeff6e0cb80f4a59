"""The cells of the engine matrix: engine x precision x optimizer, and what is special in some."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from frozen_reference import TinyLM, mixed_region
from torch import Tensor, nn
from torch.optim import Optimizer

from freezetrain.regions import Region
from freezetrain.regions.base import base_of

PLAIN, DDP, FSDP2, HSDP = "one device", "DDP", "FSDP2", "FSDP2, 2-D mesh (HSDP)"
STAGE_0 = "DeepSpeed stage 0"
ZERO_1, ZERO_2, ZERO_3 = "ZeRO-1", "ZeRO-2", "ZeRO-3"
BF16_OPTIMIZER = "ZeRO-1, BF16_Optimizer"
ZERO_2_OFFLOAD, ZERO_3_OFFLOAD = "ZeRO-2, offload", "ZeRO-3, offload"
SUB_GROUPS = "ZeRO-3, many sub-groups"
ENGINES = (
    *(PLAIN, DDP, FSDP2, HSDP, STAGE_0, ZERO_1, BF16_OPTIMIZER),
    *(ZERO_2, ZERO_2_OFFLOAD, ZERO_3, ZERO_3_OFFLOAD, SUB_GROUPS),
)
"""In the order of the documentation's table."""

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "bf16-true": torch.bfloat16,
    "fp16": torch.float16,
}
"""Precision -> dtype of the forward pass; masters are fp32 but in bf16-true."""
OPTIMIZERS = ("AdamW", "SGD", "Nesterov", "NAdam")
WORLDS = (2, 3, 4)

FREEZE, PULL, BOTH, NOTHING = "freeze", "pull", "pull beside a freeze", "no freeze"

NOT_TRAINED = "parameters with requires_grad=False"
STORED_BASE = "base stored in fp32"
CPU_ADAM = "DeepSpeedCPUAdam"
ZERO_INIT = "zero.Init"
LAST_MICRO_STEP = "gradients reduced in the last micro-step alone"
OFFLOAD_PARAMETERS = "parameters offloaded to the CPU"
SCATTERED = "contiguous_gradients off"
OVERLAP = "overlap_comm"
SMALL_BUCKETS = "buckets of 50 elements"
WEIGHED = "weighed by an importance, base on the CPU"


@dataclass(frozen=True)
class Cell:
    """One training run."""

    engine: str
    precision: str = "fp32"
    optimizer: str = "AdamW"
    variant: str = ""
    world: int = 2
    held: str = FREEZE
    """What holds the weights: FREEZE, PULL, BOTH or NOTHING."""

    @property
    def name(self) -> str:
        parts = [self.engine, self.precision, self.optimizer, self.variant, f"{self.world} ranks"]
        if self.held != FREEZE:
            parts.append(self.held)
        return " | ".join(part for part in parts if part)

    @property
    def freezes(self) -> bool:
        return self.held in (FREEZE, BOTH)

    @property
    def pulls(self) -> bool:
        return self.held in (PULL, BOTH)

    @property
    def rows(self) -> int:
        """Of a micro-batch, over all ranks: two each."""
        return 2 * self.world

    @property
    def steps(self) -> int:
        """fp16 has more of them, as loss scaling skips the first."""
        return 7 if self.precision == "fp16" else 4

    @property
    def deepspeed(self) -> bool:
        return "ZeRO" in self.engine or self.engine == STAGE_0


def runs_in(engine: str, precision: str) -> bool:
    if engine == STAGE_0:  # refused in 16 bits
        return precision == "fp32"
    if engine == BF16_OPTIMIZER:
        return precision == "bf16"
    # DeepSpeed keeps fp32 masters.
    return precision != "bf16-true" or engine in (PLAIN, DDP, FSDP2)


def cells(world: int) -> list[Cell]:
    """Those of the process group of ``world`` ranks, in the order in which they run."""
    frozen = list({2: _pairs, 3: _uneven, 4: _meshes}[world]())
    return [*frozen, *_pulled(frozen)]


def _pairs() -> Iterator[Cell]:
    engines = [engine for engine in ENGINES if engine != HSDP]
    for precision, optimizers in (
        ("fp32", OPTIMIZERS),
        ("bf16", ("AdamW", "SGD", "NAdam")),
        ("bf16-true", ("AdamW", "SGD")),
        ("fp16", ("AdamW", "SGD")),
    ):
        for engine in engines:
            if runs_in(engine, precision):
                yield from (Cell(engine, precision, optimizer) for optimizer in optimizers)
    for engine in (PLAIN, DDP, FSDP2, STAGE_0, ZERO_1, BF16_OPTIMIZER, ZERO_2, ZERO_3):
        precision = "bf16" if engine == BF16_OPTIMIZER else "fp32"
        yield Cell(engine, precision, held=NOTHING)
        yield Cell(engine, precision, "SGD", variant=NOT_TRAINED)
    for engine in (BF16_OPTIMIZER, ZERO_2, ZERO_3, ZERO_3_OFFLOAD):
        yield Cell(engine, "bf16", variant=STORED_BASE)
    for engine, precision, variant in (
        (FSDP2, "bf16", LAST_MICRO_STEP),
        (FSDP2, "fp32", OFFLOAD_PARAMETERS),
        (ZERO_2, "fp32", SCATTERED),
        (ZERO_2, "bf16", OVERLAP),
        (ZERO_3, "bf16", OVERLAP),
        (ZERO_2, "fp32", SMALL_BUCKETS),
        (ZERO_3, "fp32", SMALL_BUCKETS),
        (ZERO_3, "fp32", ZERO_INIT),
        (ZERO_3_OFFLOAD, "bf16", OFFLOAD_PARAMETERS),
        (ZERO_2_OFFLOAD, "fp32", CPU_ADAM),
        (ZERO_3_OFFLOAD, "bf16", CPU_ADAM),
    ):
        yield Cell(engine, precision, "SGD" if variant == LAST_MICRO_STEP else "AdamW", variant)


def _uneven() -> Iterator[Cell]:
    """No size of the model divides by three but those of 6, and no flat partition does."""
    for precision in ("fp32", "bf16"):
        for engine in ENGINES:
            if engine != HSDP and runs_in(engine, precision):
                yield Cell(engine, precision, world=3)
    for engine in (ZERO_2, ZERO_3):
        yield Cell(engine, "fp16", world=3)
    yield Cell(ZERO_3, "fp32", world=3, held=NOTHING)


def _meshes() -> Iterator[Cell]:
    """Needs ranks that replicate and ranks that shard; with four, some shards are empty."""
    yield Cell(FSDP2, world=4)
    for precision in ("fp32", "bf16"):
        yield Cell(HSDP, precision, world=4)
    yield Cell(HSDP, world=4, held=NOTHING)


def _pulled(frozen: list[Cell]) -> Iterator[Cell]:
    """The same runs with a pull, alone and beside the freeze, under AdamW and what is special."""
    for cell in frozen:
        if cell.held == NOTHING or cell.variant == STORED_BASE:  # the pull's base always is
            continue
        if cell.optimizer == "AdamW" or cell.variant:
            yield replace(cell, held=PULL)
        if cell.optimizer == "AdamW" and not cell.variant and cell.precision in ("fp32", "bf16"):
            yield replace(cell, held=BOTH)
        weighed = cell.engine in (DDP, FSDP2, ZERO_2_OFFLOAD, ZERO_3) and cell.world == 3
        if weighed and cell.precision == "fp32":
            yield replace(cell, variant=WEIGHED, held=PULL)


RATES = {"AdamW": 1e-2, "SGD": 0.5}


def optimizer_of(name: str, named: dict[str, nn.Parameter]) -> Optimizer:
    """An optimizer whose weight decay would move frozen entries.

    AdamW and SGD have two parameter groups, the second without decay and at half the learning
    rate. ``named``: the parameters by their names in the model, in any shape.
    """
    if name == "NAdam":
        return torch.optim.NAdam(
            named.values(), lr=1e-2, weight_decay=0.5, decoupled_weight_decay=True
        )
    if name == "Nesterov":
        return torch.optim.SGD(
            named.values(), lr=0.5, momentum=0.9, weight_decay=0.1, nesterov=True
        )
    if name == "SGD":
        return torch.optim.SGD(_grouped(named, 0.1, RATES[name]), lr=RATES[name], momentum=0.9)
    groups = _grouped(named, 0.5, 1e-2)  # times the learning rate above half an ulp of bf16
    if name == CPU_ADAM:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=1e-2, betas=(0.9, 0.95))
    return torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))


def _grouped(named: dict[str, nn.Parameter], decay: float, rate: float) -> list[dict[str, Any]]:
    """Two parameter groups: matrices with weight decay, biases and norms at half the rate."""
    matrices = [value for name, value in named.items() if _is_matrix(name)]
    others = [value for name, value in named.items() if not _is_matrix(name)]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0, "lr": rate / 2},
    ]


def _is_matrix(name: str) -> bool:
    return name.endswith("weight") and not name.startswith("norm")


def own_rows(input_ids: Tensor, cell: Cell, rank: int) -> Tensor:
    """This rank's rows of a micro-batch; on one device each rank trains alone, on all of them."""
    return input_ids if cell.engine == PLAIN else input_ids[rank :: cell.world]


NEGATIVE_ZERO = ("embedding.weight", 2, 0)
"""A frozen entry that starts as -0.0, which is not bit for bit 0.0."""


def start(cell: Cell) -> TinyLM:
    """The model before training, in fp32, with values that the cell's dtype holds exactly.

    But for a base that is stored in fp32, which the engine rounds.
    """
    model = TinyLM()
    dtype = torch.float32 if cell.variant == STORED_BASE else DTYPES[cell.precision]
    model.to(dtype).float()
    name, row, column = NEGATIVE_ZERO
    model.get_parameter(name).data[row, column] = -0.0
    return model


def region_of(cell: Cell) -> Region:
    """The region, with the base that it belongs to, for the freeze to check."""
    model = start(cell)
    region = mixed_region(model)
    return Region(region, base=base_of(model), made=region.made)


def not_trained(cell: Cell) -> list[str]:
    """Parameters that are set to need no gradient: one with frozen entries and one without."""
    return ["down.weight", "norm.bias"] if cell.variant == NOT_TRAINED else []


def pull_of(cell: Cell) -> tuple[float, dict[str, Any]]:
    """The strength of the pull and what else it is told, without its base.

    A fifth of the way in each step, for some entries more than half and for some all of it.
    """
    model, rate = start(cell), RATES[cell.optimizer]
    if cell.variant == WEIGHED:
        source = torch.Generator().manual_seed(3)
        importance = {
            name: torch.rand(value.shape, generator=source)
            for name, value in model.named_parameters()
            if name != "norm.bias"  # which is not pulled
        }
        return 0.2 / rate, {"importance": importance, "on_cpu": True}
    names = ["embedding.weight", "up.weight", "down.weight", "norm.weight"]
    strong = Region.random(model, 0.3, seed=9, parameters=names)
    strong |= Region.random(model, 0.02, seed=10, parameters=["embedding.weight"])
    strong |= Region.tensors(model, ["up.bias"])
    whole = Region.rows(model, {"down.weight": [1], "embedding.weight": [3]})
    return 0.2 / rate, {"regions": [(whole, 3.0 / rate), (strong, 0.6 / rate)]}


def strengths_of(cell: Cell) -> dict[str, Tensor]:
    """Parameter name -> λ of each of its entries, written out."""
    strength, options = pull_of(cell)
    model = start(cell)
    found = {n: torch.full_like(p, strength, dtype=torch.float64) for n, p in _named(model)}
    if importance := options.get("importance"):
        mean = torch.cat([value.flatten() for value in importance.values()]).double().mean()
        return {
            name: value * importance.get(name, torch.zeros(1)) / mean
            for name, value in found.items()
        }
    for region, own in reversed(options["regions"]):
        for name, entries in region.items():
            found[name][entries.mask()] = own
    return found


def _named(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [(name, value.detach()) for name, value in model.named_parameters()]


def pulled_to_start(cell: Cell) -> bool:
    """Whether the pull is given no base: it takes what the weights are as it begins.

    Not with fp16, whose first steps are skipped: a pull in them would leave the start as it is.
    """
    return cell.held == PULL and cell.precision != "fp16"


def base_of_pull(cell: Cell) -> dict[str, Tensor]:
    """What the weights are pulled to: their start, or other values in fp32."""
    start_of = dict(_named(start(cell)))
    if pulled_to_start(cell):
        return start_of
    others = dict(_named(TinyLM(seed=7).float()))
    return {name: value + 0.1 * others[name] for name, value in start_of.items()}


class Outcome(NamedTuple):
    """Of one rank."""

    facts: dict[str, Any]
    weights: dict[str, dict[str, Tensor]]
    """Kind of weights -> parameter name -> whole tensor."""
