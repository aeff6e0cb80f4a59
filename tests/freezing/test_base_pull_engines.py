"""The pull to the base under every engine, against a plain loop in fp64, and on from the middle."""

from typing import Any, NamedTuple

import pytest
import torch
from forked_ranks import run_ranks
from frozen_reference import MAX_NORM, TinyLM, adamw, loss_of, mixed_region, steps_of_batches
from torch import Tensor, nn

from freezetrain.freezing import freeze, pull

pytest.importorskip("deepspeed")

STRENGTH, STRONG = 20.0, 60.0
STEPS = 4


class Cell(NamedTuple):
    engine: str
    dtype: str = "fp32"
    world: int = 2
    offload: bool = False


CELLS = [
    Cell("DDP"),
    Cell("FSDP2", world=3),
    Cell("FSDP2"),
    Cell("ZeRO-1", world=3),
    Cell("ZeRO-2", "bf16"),
    Cell("ZeRO-2", world=3),
    Cell("ZeRO-2", offload=True),
    Cell("ZeRO-3"),
    Cell("ZeRO-3", "bf16", 3),
    Cell("ZeRO-3", offload=True),
    Cell("BF16_Optimizer", "bf16"),
]
DEFAULT = [Cell("DDP"), Cell("FSDP2", world=3), Cell("ZeRO-2", "bf16"), Cell("ZeRO-3", "bf16", 3)]


def train(rank: int, world: int, cell: Cell, frozen: bool) -> dict[str, Any]:
    from tiny_engines import Trained

    options: dict[str, Any] = {}
    if cell.offload:
        options["zero_force_ds_cpu_optimizer"] = False
        stage = {"stage": int(cell.engine[-1]), "stage3_param_persistence_threshold": 20}
        options["zero_optimization"] = {**stage, "offload_optimizer": {"device": "cpu"}}
    trained = Trained(cell.engine, cell.dtype, **options)
    base = {name: value.detach() + 1 for name, value in TinyLM().float().named_parameters()}
    region = mixed_region(TinyLM().float())
    handle = None
    if frozen:
        handle = freeze(trained.model, trained.optimizer, region, check_base=False)
    stronger = () if frozen else [(region, STRONG)]
    held = pull(trained.model, trained.optimizer, STRENGTH, regions=stronger, base=base)
    start = trained.masters()
    losses = trained.train(0, STEPS)
    if handle is not None:
        handle.verify()
    return {
        "start": start, "masters": trained.masters(),
        "losses": losses, "distances": held.distances(), "count": held.count,
    }  # fmt: skip


def plain(dtype: str) -> dict[str, Tensor]:
    """In fp64, from weights that were rounded as the engine does, to the base as it is stored."""
    model = TinyLM().float()
    base = {name: value.detach().double() + 1 for name, value in model.named_parameters()}
    strengths = {name: torch.full(value.shape, STRENGTH) for name, value in base.items()}
    for name, entries in mixed_region(model).items():
        strengths[name][entries.mask()] = STRONG
    if dtype == "bf16":
        model = model.bfloat16()
    model = model.double()
    optimizer = adamw(model.parameters())
    for batches in steps_of_batches(STEPS, rows=6):
        for input_ids in batches:
            (loss_of(model(input_ids), input_ids) / len(batches)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, value in model.named_parameters():
                value -= (1e-2 * strengths[name]).clamp(max=1.0) * (value - base[name])
    return {name: value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize(
    "cell",
    [c if c in DEFAULT else pytest.param(c, marks=pytest.mark.exhaustive) for c in CELLS],
    ids=str,
)
def test_weights_are_those_of_a_plain_loop(cell):
    ranks = run_ranks(train, cell, False, world=cell.world)
    expected = plain(cell.dtype)
    start = dict(TinyLM().float().named_parameters())
    base = {name: value.detach().double() + 1 for name, value in start.items()}
    # In bf16 gradients are rounded, and Adam makes of a sign a whole step of the learning rate.
    near = 3e-5 if cell.dtype == "fp32" else 0.06
    for run in ranks:
        for name, value in run["masters"].items():
            name = name.removeprefix("module.")
            assert (value.double() - expected[name]).abs().max() < near, name
            found = float((value.double() - base[name]).norm() / base[name].norm())
            assert run["distances"][name] == pytest.approx(found, rel=1e-5)
        assert run["losses"] == ranks[0]["losses"]
    assert sum(run["count"] for run in ranks) in (
        sum(value.numel() for value in base.values()) * (1 if cell.engine != "DDP" else 2),
    )


@pytest.mark.parametrize("cell", [DEFAULT[1], DEFAULT[3]], ids=str)
def test_frozen_entries_keep_their_bits_beside_it(cell):
    region = mixed_region(TinyLM().float())
    for run in run_ranks(train, cell, True, world=cell.world):
        for name, entries in region.items():
            mask = entries.mask()
            assert torch.equal(run["masters"][name][mask], run["start"][name][mask])
            free = ~mask
            assert not free.any() or not torch.equal(
                run["masters"][name][free], run["start"][name][free]
            )
