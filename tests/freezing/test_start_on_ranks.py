"""Frozen entries start from the stored base or a clamp value, wherever an engine holds them."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from forked_ranks import run_ranks
from frozen_reference import TinyLM, adamw, steps_of_batches, uneven_region
from torch import Tensor

from freezetrain.freezing import compare_weights, freeze

pytest.importorskip("deepspeed")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FSDP2, BF16_OPTIMIZER = "FSDP2", "BF16_Optimizer"
AS_IS, STORED = "as it is", "stored base"  # other starts are clamp values
STEPS = 3

Weights = dict[str, dict[str, Tensor]]
"""Moment of a run -> parameter -> tensor."""


class Cell(NamedTuple):
    """A freeze that gives the frozen entries their values first, or not."""

    engine: str
    dtype: str
    start: str
    world: int

    @property
    def before(self) -> int:
        """Steps before the freeze: ZeRO-3 keeps small parameters whole only after the first."""
        return 0 if self.start in (AS_IS, STORED) else 1

    @property
    def rounds(self) -> bool:
        """Whether fp32 masters stand behind weights in bf16."""
        return self.dtype == "bf16" and self.engine != FSDP2

    @property
    def exports(self) -> bool:
        """Whether DeepSpeed's zero_to_fp32 reads its checkpoint."""
        return self.engine not in (FSDP2, BF16_OPTIMIZER)


CELLS = [
    Cell(engine, dtype, start, world)
    for engine in ("ZeRO-1", BF16_OPTIMIZER, "ZeRO-2", "ZeRO-3", FSDP2)
    for dtype in ("fp32", "bf16")
    for start in (AS_IS, STORED, "0.0", "0.1")
    for world in (2, 3)
    if dtype == "bf16" or (engine != BF16_OPTIMIZER and start in (STORED, "0.0"))
    if world == 2 or (dtype == "bf16" and start in (STORED, "0.0"))
]
DEFAULT = [
    Cell("ZeRO-2", "bf16", STORED, 3),
    Cell("ZeRO-2", "bf16", AS_IS, 2),
    Cell("ZeRO-3", "bf16", STORED, 2),
    Cell("ZeRO-3", "fp32", "0.0", 2),
    Cell(BF16_OPTIMIZER, "bf16", "0.1", 2),
    Cell(FSDP2, "bf16", "0.1", 2),
]


def start_of(cell: Cell) -> dict[str, Any]:
    if cell.start == AS_IS:
        return {}
    if cell.start == STORED:
        return {"base": dict(TinyLM().float().named_parameters())}
    return {"clamp": float(cell.start), "check_base": False}


def train(rank: int, world: int, cell: Cell, folder: Path) -> tuple[str, Weights]:
    """The digest, and the weights before and after the freeze, after training and exported."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from tiny_engines import Trained

    trained = Trained(cell.engine, cell.dtype)
    trained.train(0, cell.before)
    weights = {"before": trained.masters()}
    if cell.engine == FSDP2:
        logits(trained.model)  # which leaves the root module gathered, as an evaluation does
    region = uneven_region(TinyLM())
    handle = freeze(trained.model, trained.optimizer, region, audit_every=2, **start_of(cell))
    weights |= {"logits": {"": logits(trained.model)}}
    weights |= {"master": trained.masters(), "copy": trained.copies()}
    trained.train(cell.before, STEPS)
    weights |= {"trained": trained.masters(), "trained copy": trained.copies()}
    if cell.engine != FSDP2:
        trained.model.save_checkpoint(folder)
    if cell.exports:
        export = get_fp32_state_dict_from_zero_checkpoint(folder)
        weights["export"] = {name: value.clone() for name, value in export.items()}
    handle.verify()
    return handle.digest, weights


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    """From the first forward pass after the freeze, the same on all ranks."""
    return model(steps_of_batches(1, 1)[0][0]).clone()


def expected(cell: Cell, before: dict[str, Tensor]) -> tuple[TinyLM, TinyLM]:
    """The masters and the weights of the forward pass, as models, right after the freeze."""
    stored, masters = TinyLM().float(), TinyLM().float()
    masters.load_state_dict({**before, "head.weight": before["embedding.weight"]})
    for frozen in uneven_region(masters).resolve(masters):
        mask = frozen.entries.mask()
        with torch.no_grad():
            if cell.start == STORED:
                frozen.parameter[mask] = stored.get_parameter(frozen.name)[mask]
            elif cell.start != AS_IS:
                frozen.parameter[mask] = float(cell.start)
    copies = TinyLM()
    copies.load_state_dict(masters.state_dict())
    copies.to(DTYPES[cell.dtype])
    return (masters if cell.rounds else copies), copies


def assert_holds(weights: dict[str, Tensor], model: TinyLM, frozen_only: bool = False) -> None:
    """All the model's values to the last bit, or those at its frozen entries."""
    masks = {frozen.name: frozen.entries.mask() for frozen in uneven_region(model).resolve(model)}
    for name, value in model.named_parameters():
        held = weights[name]
        assert held.dtype == value.dtype
        mask = masks.get(name, torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(held[mask], value[mask]), name
        if not frozen_only:
            assert torch.equal(held, value), name
        elif not mask.all():
            assert not torch.equal(held, value), name


def marked(cell: Cell) -> Any:
    marks = () if cell in DEFAULT else (pytest.mark.exhaustive,)
    return pytest.param(cell, id=", ".join(map(str, cell)), marks=marks)


@pytest.mark.parametrize("cell", [marked(cell) for cell in CELLS])
def test_starts_from_it_everywhere_and_keeps_it(tmp_path: Path, cell: Cell) -> None:
    (digest, weights), *_ = run_ranks(train, cell, tmp_path, world=cell.world)
    masters, copies = expected(cell, weights["before"])
    if not cell.before:
        base = TinyLM().to(DTYPES[cell.dtype]).to(masters.norm.weight.dtype)
        assert_holds(weights["before"], base)
    assert_holds(weights["master"], masters)
    assert_holds(weights["trained"], masters, frozen_only=True)
    assert_holds(weights["copy"], copies)
    assert_holds(weights["trained copy"], copies, frozen_only=True)
    limit = 1e-6 if cell.dtype == "fp32" else 0.1
    logits_then = copies(steps_of_batches(1, 1)[0][0]).detach()
    torch.testing.assert_close(weights["logits"][""], logits_then, rtol=0, atol=limit)
    assert digest == freeze(masters, adamw(masters.parameters()), uneven_region(masters)).digest
    if not cell.exports:
        return
    assert_holds(weights["export"], masters, frozen_only=True)
    if cell.rounds and cell.start in (AS_IS, STORED):
        # The export is the stored base or is known to be rounded.
        export = {name: weights["export"][name] for name, _ in TinyLM().named_parameters()}
        stored = {name: value.detach() for name, value in TinyLM().float().named_parameters()}
        rounded = {name: value.bfloat16() for name, value in stored.items()}
        region = uneven_region(TinyLM())
        assert (compare_weights(stored, export, region).moved == 0) == (cell.start == STORED)
        assert (compare_weights(rounded, export, region).moved == 0) == (cell.start == AS_IS)
