"""What each cell must come to: one process, fp64, frozen entries as constants."""

from dataclasses import dataclass
from functools import cache

import torch
from frozen_reference import Constants, TinyLM, mixed_region, steps_of_batches, train
from matrix_cells import CPU_ADAM, DTYPES, NO_FREEZE, NOT_TRAINED, STORED_BASE, Cell, optimizer_of
from torch import Tensor

from freezetrain.regions import Region
from freezetrain.regions.base import base_of

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


@dataclass(frozen=True)
class Expected:
    """Parameter name -> tensor of its shape, in fp64 or bool; and the gradient norms."""

    start: dict[str, Tensor]
    frozen: dict[str, Tensor]
    end: dict[str, Tensor]
    norms: list[float]
    """Before clipping, of each step, over trainable entries."""


def expected(cell: Cell, skipped: tuple[int, ...]) -> Expected:
    """``skipped``: steps that loss scaling left out, and so does the reference."""
    optimizer = "AdamW" if cell.variant == CPU_ADAM else cell.optimizer
    variant = cell.variant if cell.variant in (NO_FREEZE, NOT_TRAINED) else ""
    # The start's dtype is what counts; with a stored base trainable entries start rounded.
    return _expected(Cell("", cell.precision, optimizer, variant, cell.world), skipped)


@cache
def _expected(cell: Cell, skipped: tuple[int, ...]) -> Expected:
    region = region_of(cell)
    model = start(cell).double()
    if cell.variant == NO_FREEZE:
        constants = Constants(model, Region({}))
    else:
        constants = Constants(model, region | Region.tensors(model, not_trained(cell) or []))
    free = {name: value for name, value in constants.free.items() if value.numel()}
    steps = [
        batches
        for number, batches in enumerate(steps_of_batches(cell.steps, rows=cell.rows))
        if number not in skipped
    ]
    optimizer = optimizer_of(cell.optimizer, free)
    norms = train(constants, list(free.values()), optimizer, steps)
    frozen = {name: torch.zeros_like(mask) for name, mask in constants.masks.items()}
    frozen.update({name: entries.mask() for name, entries in region.items()})
    for name in not_trained(cell):
        frozen[name] = torch.ones_like(frozen[name])
    return Expected(
        constants.constants,
        frozen,
        {name: value.detach() for name, value in constants.weights().items()},
        [float(norm) for norm in norms],
    )
