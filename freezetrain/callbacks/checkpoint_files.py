"""Checkpoints on the disk, whole or absent, of any engine; weights of one loaded back."""

import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import lightning as L
from filelock import FileLock
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy

from freezetrain.errors import UserError
from freezetrain.files import UNFINISHED, checksum, publish, require_space, sync, write_json
from freezetrain.forward import reshard
from freezetrain.ranks import from_all_ranks, from_first_rank, together
from freezetrain.user_files import reason

_FACTS = "freezetrain.json"  # in a checkpoint that is a folder

# What a kill leaves. A checkpoint has its name only while it is whole.
_REMOVED = ".removed"

LEFT_OVER = (UNFINISHED, _REMOVED)


@dataclass(frozen=True)
class Facts:
    """What a checkpoint folder says of itself."""

    step: int
    """Optimizer steps so far."""
    world: int
    """Ranks that wrote it."""
    engine: str
    """Kind of the recipe's engine: fsdp2, zero-1, -2, -3."""
    files: dict[str, int]
    """Path in the folder -> bytes."""
    sums: dict[str, int] = field(default_factory=dict)
    """Path in the folder -> CRC-32."""


def facts(checkpoint: Path) -> Facts:
    """What a checkpoint folder says of itself."""
    return Facts(**json.loads((checkpoint / _FACTS).read_text(encoding="utf-8")))


def damage(checkpoint: Path) -> str | None:
    """The first file of it that is not what was written, and what is wrong; None where all are.

    All bytes are read. A single file holds CRC-32 sums of its own, as a ZIP archive does; those of
    a folder's are in what it says of itself, unless a version wrote it that did not take them.
    """
    try:
        if not checkpoint.is_dir():
            with zipfile.ZipFile(checkpoint) as archive:
                changed = archive.testzip()
            return None if changed is None else f"{changed} in it has changed"
        written = facts(checkpoint)
        for name, size in written.files.items():
            if (checkpoint / name).stat().st_size != size:
                return f"{name} has another size than it was written with"
            if written.sums.get(name) not in (None, checksum(checkpoint / name)):
                return f"{name} has changed since it was written"
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        return reason(error)
    return None


def write(trainer: L.Trainer, path: Path, save: Callable[[str], None]) -> None:
    """Have ``save`` write a checkpoint to the place that it is given; then it gets its name.

    Every rank calls this. ``path`` is a file on one device and under DDP, a folder under DeepSpeed
    and FSDP2. It has its name only when all ranks have written and the disk has it. Raises
    ``UserError`` on all ranks where one cannot write.
    """
    unfinished = Path(f"{path}{UNFINISHED}")
    with _written(path):
        save(str(unfinished))
    with _written(path):
        if trainer.local_rank == 0:
            sync(unfinished)
    sums: dict[str, int] = {}
    with _written(path):
        if unfinished.is_dir():  # of each rank a share, as they may be large
            files = sorted(file for file in unfinished.rglob("*") if file.is_file())
            own = files[trainer.global_rank :: trainer.world_size]
            sums = {str(file.relative_to(unfinished)): checksum(file) for file in own}
    of_ranks = from_all_ranks(sums)
    with _written(path):
        if trainer.is_global_zero:
            if unfinished.is_dir():
                sums = {name: crc for of_rank in of_ranks for name, crc in of_rank.items()}
                sizes = {name: (unfinished / name).stat().st_size for name in sorted(sums)}
                engine = engine_kind(trainer)
                written = Facts(trainer.global_step, trainer.world_size, engine, sizes, sums)
                write_json(unfinished / _FACTS, asdict(written))
            publish(unfinished, path)


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """All ranks wait for this block on each of them, and none for one that failed in it."""
    with together():
        try:
            yield
        except OSError as error:
            raise UserError(
                f"could not write the checkpoint {path}: {error}; mend that, then start again to "
                "go on from the one before"
            ) from error


def remove(path: Path) -> None:
    """Remove a checkpoint: what a kill leaves of it no longer has its name."""
    removed = path.with_name(path.name + _REMOVED)
    os.replace(path, removed)
    delete(removed)


def delete(path: Path) -> None:
    """Delete a file or a folder."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def bring_back(trainer: L.Trainer, path: Path) -> None:
    """Give the trained module the weights in ``path``, on every rank; training cannot go on.

    ``path`` was written, through :func:`write`, by :func:`save_weights` under the same engine, by
    any number of ranks. Under DeepSpeed the optimizer's fp32 masters come back too.
    """
    strategy = trainer.strategy
    reshard(trainer.lightning_module)  # what FSDP2 has gathered would go stale
    if isinstance(strategy, DeepSpeedStrategy):
        strategy.deepspeed_engine._config.load_universal_checkpoint = (
            facts(path).world != trainer.world_size
        )
        if facts(path).world != trainer.world_size:
            convert(path)
    optimizers = strategy.optimizers
    strategy.optimizers = []  # FSDP2 would look for their states
    try:
        checkpoint = strategy.load_checkpoint(path, weights_only=True)
    finally:
        strategy.optimizers = optimizers
    strategy.load_model_state_dict(checkpoint)


def save_weights(trainer: L.Trainer, path: str) -> None:
    """Save the module's parameters and buffers; DeepSpeed adds its optimizer's state."""
    state = trainer.strategy.lightning_module_state_dict()
    trainer.strategy.save_checkpoint({"state_dict": state}, path)


def convert(checkpoint: Path) -> None:
    """Convert a folder of ZeRO to DeepSpeed's universal format, inside it, unless it is done.

    The first process that asks does it, while others wait.
    """
    from freezetrain.freezing.zero import to_universal

    done = checkpoint / "latest_universal"  # written last, with the folder's name in it
    with FileLock(checkpoint / ".lock"):
        if not (done.is_file() and done.read_text(encoding="utf-8")):
            size = sum(facts(checkpoint).files.values())
            require_space(checkpoint, 2 * size, "the checkpoint for another number of ranks")
            shutil.rmtree(checkpoint / "universal", ignore_errors=True)  # what a kill has left
            to_universal(checkpoint / "checkpoint", checkpoint / "universal")


def require_shared(trainer: L.Trainer, folder: Path) -> None:
    """UserError on all ranks unless rank 0 can write in ``folder`` and each of them sees it."""
    probe = folder / from_first_rank(f".probe-{os.getpid()}")
    with together():
        if trainer.is_global_zero:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                probe.touch()
            except OSError as error:
                raise UserError(
                    f"expected a folder that can be written to, got {str(folder)!r} "
                    f"({error.strerror}); choose another one, or make it writable"
                ) from error
    try:
        with together():
            if not probe.exists():
                raise UserError(
                    f"the folder {folder} of rank 0 is not the one that all ranks see under that "
                    "name; give the run a folder on a file system that all machines share"
                )
    finally:
        if trainer.is_global_zero:
            probe.unlink()


def engine_kind(trainer: L.Trainer) -> str:
    """Kind of the recipe's engine that the trainer has."""
    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        return f"zero-{strategy.config['zero_optimization']['stage']}"  # type: ignore[index]
    return "fsdp2" if isinstance(strategy, ModelParallelStrategy) else "ddp"
