"""A frozen, pulled run goes on from its checkpoint: same or other ranks, other stages of ZeRO.

The pull takes the base anew where the run goes on. It is not where the weights have ever been: a
pull to these would leave other weights.
"""

from argparse import Namespace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from forked_ranks import run_ranks
from frozen_reference import TinyLM, adamw, uneven_region
from torch import Tensor

from freezetrain.freezing import Freeze, compare_weights, freeze, pull

pytest.importorskip("deepspeed")

SAVED, END = 3, 6  # steps
STRENGTH = 10.0  # of the pull: a tenth of the way in each step
BF16_OPTIMIZER = "BF16_Optimizer"
ZERO = ("ZeRO-1", "ZeRO-2", "ZeRO-3")
SOURCES = [
    *((engine, dtype) for engine in (*ZERO, "FSDP2") for dtype in ("fp32", "bf16")),
    (BF16_OPTIMIZER, "bf16"),
    ("ZeRO-2, offload", "fp32"),
    ("ZeRO-3, offload", "fp32"),
    ("ZeRO-3, offload", "bf16"),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# What adding numbers up in another order changes. Without the optimizer's state, or from other
# masters, the runs would be 1e-3 apart in fp32, and the losses 1e-1 in either.
LOSSES = {"fp32": 1e-6, "bf16": 5e-3}
WEIGHTS = {"fp32": {"masters": 1e-6, "copies": 1e-6}, "bf16": {"masters": 1e-3, "copies": 1e-2}}
# FSDP2's own weights are in bf16: a step of theirs is larger.
LOSSES_IN_BF16_WEIGHTS = 2e-2


class Cell(NamedTuple):
    """A run that goes on from the checkpoint that 2 ranks wrote under ``source``."""

    source: str
    dtype: str
    engine: str
    world: int
    freeze_first: bool = False
    """Freeze and then load, rather than the other way round."""
    moved: bool = False
    """Pull to the weights that were loaded, which is wrong."""

    @property
    def universal(self) -> bool:
        """Whether it needs DeepSpeed's universal format."""
        return self.source != "FSDP2" and (self.world != 2 or self.engine != self.source)

    def name(self) -> str:
        order = ", freeze first" if self.freeze_first else ""
        return f"{self.dtype}, {self.source} to {self.engine}, 2 to {self.world} ranks{order}"


class Run(NamedTuple):
    """What a run came to after the checkpoint."""

    losses: list[float]
    masters: dict[str, Tensor]
    copies: dict[str, Tensor]
    digests: list[str]


OTHERS = [("ZeRO-1", "ZeRO-2"), ("ZeRO-2", "ZeRO-1")]
CELLS = [
    *(Cell(engine, dtype, engine, world) for engine, dtype in SOURCES for world in (1, 2, 3)),
    *(Cell(engine, dtype, engine, 2, freeze_first=True) for engine, dtype in SOURCES),
    *(Cell(source, dtype, engine, 2) for source, engine in OTHERS for dtype in ("fp32", "bf16")),
]
DEFAULT = [
    Cell("ZeRO-2", "bf16", "ZeRO-2", 2),
    Cell("ZeRO-2", "bf16", "ZeRO-2", 3),
    Cell("ZeRO-3", "bf16", "ZeRO-3", 2),
    Cell("ZeRO-2", "fp32", "ZeRO-1", 2),
    Cell("FSDP2", "fp32", "FSDP2", 3),
    Cell("ZeRO-3, offload", "fp32", "ZeRO-3, offload", 3),
]


def stored() -> dict[str, Tensor]:
    """The base, to which fp32 masters of bf16 copies differ unless they start from it."""
    return {name: value.detach() for name, value in TinyLM().float().named_parameters()}


def pulled_to() -> dict[str, Tensor]:
    return {name: value + 1 for name, value in stored().items()}


def train_and_save(rank: int, world: int, engine: str, dtype: str, folder: Path) -> Run:
    from tiny_engines import Trained

    trained = Trained(engine, dtype)
    base = None if engine == "FSDP2" else stored()
    region = uneven_region(TinyLM())
    handle = freeze(trained.model, trained.optimizer, region, base=base, audit_every=2)
    pull(trained.model, trained.optimizer, STRENGTH, base=pulled_to())
    trained.train(0, SAVED)
    save(trained, handle, folder)
    losses = trained.train(SAVED, END)
    handle.verify()
    return Run(losses, trained.masters(), trained.copies(), [handle.digest])


def save(trained: Any, handle: Freeze, folder: Path) -> None:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict

    if trained.engine != "FSDP2":
        state = {"digest": handle.digest}
        trained.model.save_checkpoint(folder, tag="saved", client_state=state)
        return
    weights, states = get_state_dict(trained.model, trained.optimizer)
    state = {"model": weights, "optimizer": states, "digest": handle.digest}
    checkpoint.save(state, checkpoint_id=folder)


def convert(rank: int, world: int, engine: str, folder: Path) -> dict[str, Tensor]:
    """To DeepSpeed's universal format; and the weights of one fp32 state dict."""
    from deepspeed.checkpoint.ds_to_universal import main
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    main(
        Namespace(
            input_folder=str(folder / "saved"),
            output_folder=str(folder / "universal"),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,  # ZeRO-1 and 2: it wants what Megatron would have saved
        )
    )
    if engine != BF16_OPTIMIZER:
        weights = get_fp32_state_dict_from_zero_checkpoint(folder, tag="saved")
        return {name: value.clone() for name, value in weights.items()}
    # zero_to_fp32 takes its files for no ZeRO checkpoint: the fp32 masters, one file each.
    files = (folder / "universal" / "zero").glob("*/fp32.pt")
    weights = {file.parent.name: torch.load(file, weights_only=True)["param"] for file in files}
    # The second name of a tied parameter has no master: what lies there are its 16-bit weights.
    return weights | {"head.weight": weights["embedding.weight"]}


def go_on(rank: int, world: int, cell: Cell, folder: Path) -> Run:
    from tiny_engines import Trained

    options = {"checkpoint": {"load_universal": True}} if cell.universal else {}
    trained = Trained(cell.engine, cell.dtype, **options)
    region, handle = uneven_region(TinyLM()), None
    if cell.freeze_first:
        base = None if cell.engine == "FSDP2" else stored()
        handle = freeze(trained.model, trained.optimizer, region, base=base, audit_every=2)
    if cell.engine == "FSDP2":
        digest = load_shards(trained, folder)
    else:
        tag = "universal" if cell.universal else "saved"
        _, client = trained.model.load_checkpoint(folder, tag=tag)
        digest = client["digest"]
    if handle is None:
        handle = freeze(trained.model, trained.optimizer, region, check_base=False, audit_every=2)
    base = trained.masters() if cell.moved else pulled_to()
    pull(trained.model, trained.optimizer, STRENGTH, base=base)
    losses = trained.train(SAVED, END)
    handle.verify()
    return Run(losses, trained.masters(), trained.copies(), [digest, handle.digest])


def load_shards(trained: Any, folder: Path) -> str:
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    weights, states = get_state_dict(trained.model, trained.optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": states, "digest": ""}
    checkpoint.load(state, checkpoint_id=folder)
    optimizer_state = state["optimizer"]
    set_state_dict(
        trained.model,
        trained.optimizer,
        model_state_dict=weights,
        optim_state_dict=optimizer_state,
    )
    return state["digest"]


def fail_to_load(rank: int, world: int, cell: Cell, folder: Path) -> str:
    try:
        go_on(rank, world, cell, folder)
    except Exception as error:
        return repr(error)
    return "loaded"


class Saved:
    """Checkpoints that two ranks wrote, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[tuple[str, str], Run] = {}
        self.consolidated = cache(self._consolidated)

    def path(self, engine: str, dtype: str) -> Path:
        return self.folder / f"{engine} {dtype}"

    def run(self, engine: str, dtype: str) -> Run:
        """How the run that wrote it went on."""
        if (engine, dtype) not in self.runs:
            path = self.path(engine, dtype)
            self.runs[engine, dtype], _ = run_ranks(train_and_save, engine, dtype, path)
        return self.runs[engine, dtype]

    def resumed(self, cell: Cell) -> Run:
        """How a run goes on from the checkpoint."""
        self.run(cell.source, cell.dtype)
        if cell.universal:
            self.consolidated(cell.source, cell.dtype)
        path = self.path(cell.source, cell.dtype)
        return run_ranks(go_on, cell, path, world=cell.world)[0]

    def _consolidated(self, engine: str, dtype: str) -> dict[str, Tensor]:
        """One fp32 tensor for each parameter; converts to the universal format on the way."""
        self.run(engine, dtype)
        return run_ranks(convert, engine, self.path(engine, dtype), world=1)[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Saved:
    return Saved(tmp_path_factory.mktemp("checkpoints"))


def expected_digest(engine: str, dtype: str) -> str:
    """From a freeze on one device: of the base as it is stored, or in FSDP2's dtype."""
    model = TinyLM().to(DTYPES[dtype] if engine == "FSDP2" else torch.float32)
    return freeze(model, adamw(model.parameters()), uneven_region(model)).digest


def assert_frozen(run: Run, engine: str, dtype: str) -> None:
    """Masters hold the stored values to the last bit, copies those rounded to their dtype."""
    base = stored()
    for frozen in uneven_region(TinyLM()).resolve(TinyLM()):
        mask, start = frozen.entries.mask(), base[frozen.name]
        copy, master = run.copies[frozen.name], run.masters[frozen.name]
        assert copy.dtype == DTYPES[dtype]
        assert torch.equal(copy[mask], start[mask].to(copy.dtype))
        assert master.dtype == (copy.dtype if engine == "FSDP2" else torch.float32)
        assert torch.equal(master[mask], start[mask].to(master.dtype))


def marked(cell: Cell) -> Any:
    marks = () if cell in DEFAULT else (pytest.mark.exhaustive,)
    return pytest.param(cell, id=cell.name(), marks=marks)


@pytest.mark.parametrize("cell", [marked(cell) for cell in CELLS])
def test_goes_on_as_if_never_stopped(saved: Saved, cell: Cell) -> None:
    uninterrupted, resumed = saved.run(cell.source, cell.dtype), saved.resumed(cell)
    for run in (uninterrupted, resumed):
        assert_frozen(run, cell.engine, cell.dtype)
        assert {*run.digests} == {expected_digest(cell.source, cell.dtype)}
    exact = cell.world == 2 and not cell.universal
    without_masters = cell.engine == "FSDP2" and cell.dtype == "bf16"
    limit = LOSSES_IN_BF16_WEIGHTS if without_masters else LOSSES[cell.dtype]
    losses = pytest.approx(uninterrupted.losses, rel=0, abs=0 if exact else limit)
    assert resumed.losses == losses
    for kind, limit in WEIGHTS[cell.dtype].items():
        limit = WEIGHTS[cell.dtype]["copies"] if without_masters else limit
        torch.testing.assert_close(
            getattr(resumed, kind),
            getattr(uninterrupted, kind),
            rtol=0,
            atol=0 if exact else limit,
        )


MOVED = [
    Cell("FSDP2", "fp32", "FSDP2", 3, moved=True),
    Cell("FSDP2", "bf16", "FSDP2", 2, moved=True),
    Cell("ZeRO-2", "bf16", "ZeRO-2", 3, moved=True),
    Cell("ZeRO-3, offload", "fp32", "ZeRO-3, offload", 3, moved=True),
]


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(c, id=c.name(), marks=() if c == MOVED[0] else pytest.mark.exhaustive)
        for c in MOVED
    ],
)
def test_pulled_to_the_weights_that_were_loaded_it_goes_elsewhere(saved: Saved, cell: Cell) -> None:
    """Far beyond what the test above lets pass, so that it would fail."""
    uninterrupted, resumed = saved.run(cell.source, cell.dtype), saved.resumed(cell)
    apart = max(
        float((value.double() - uninterrupted.masters[name].double()).abs().max())
        for name, value in resumed.masters.items()
    )
    assert apart > 10 * max(WEIGHTS[cell.dtype].values())


@pytest.mark.exhaustive
@pytest.mark.parametrize(("source", "engine"), [("ZeRO-2", "ZeRO-3"), ("ZeRO-3", "ZeRO-2")])
def test_deepspeed_does_not_go_on_at_stage_3_from_another_or_back(
    saved: Saved, source: str, engine: str
) -> None:
    """Were it to load one day, the notes on what can be resumed would be wrong."""
    saved.consolidated(source, "fp32")
    cell = Cell(source, "fp32", engine, 2)
    refused = run_ranks(fail_to_load, cell, saved.path(source, "fp32"))
    assert refused == ["AssertionError()", "AssertionError()"]


def consolidated_shards(rank: int, world: int, dtype: str) -> dict[str, Tensor]:
    from tiny_engines import Trained
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    trained = Trained("FSDP2", dtype)
    freeze(trained.model, trained.optimizer, uneven_region(TinyLM()), audit_every=2)
    trained.train(0, SAVED)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(trained.model, options=options)
    dist.barrier()
    return {name: value.clone() for name, value in state.items()}  # empty but on rank 0


@pytest.mark.parametrize(
    ("engine", "dtype"),
    [
        pytest.param(*source, marks=() if source == ("ZeRO-2", "bf16") else pytest.mark.exhaustive)
        for source in SOURCES
    ],
)
def test_consolidated_model_holds_the_stored_values(saved: Saved, engine: str, dtype: str) -> None:
    if engine == "FSDP2":
        weights = run_ranks(consolidated_shards, dtype)[0]
    else:
        weights = dict(saved.consolidated(engine, dtype))
    tied = weights.pop("head.weight")
    assert torch.equal(tied, weights["embedding.weight"])
    region = uneven_region(TinyLM())
    base = {name: value.to(weights[name].dtype) for name, value in stored().items()}
    compared = compare_weights(base, weights, region)
    assert (compared.checked, compared.moved) == (region.count, 0)
    # A step may be too small for weights in bf16.
    assert compared.changed >= (0.9 if engine == "FSDP2" else 1) * compared.trainable

    model = TinyLM().to(tied.dtype)
    model.load_state_dict({**weights, "head.weight": tied})
    handle = freeze(model, adamw(model.parameters()), region, check_base=False)
    assert handle.digest == expected_digest(engine, dtype)
