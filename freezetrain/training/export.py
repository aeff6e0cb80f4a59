"""A trained model as a Hugging Face folder, gathered tensor by tensor from where its parts lie."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from freezetrain.errors import UserError
from freezetrain.files import require_space
from freezetrain.models import without_progress_bars
from freezetrain.regions.parameters import full_shape
from freezetrain.regions.storage import split_into_shards

SHARD_BYTES = 5_000_000_000

_SINGLE = "model.safetensors"

_INDEX = "model.safetensors.index.json"


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    dtype: torch.dtype | None = None,
) -> None:
    """Write ``folder`` in Hugging Face format, whole or not at all.

    ``model`` is whole, partitioned by ZeRO-3 or sharded by FSDP2. Every rank calls this and rank 0
    writes: the weights are gathered one at a time, rounded to ``dtype`` (None: as they are held)
    and leave for a file whenever ``shard_bytes`` of them are there. Where DeepSpeed trains in 16
    bits, what is rounded is the fp32 masters, which its optimizer steps. Only a model of which
    transformers joins several tensors into one as it saves is gathered whole, in rank 0's memory.

    Raises UserError, on all ranks, if the folder exists or cannot be written, or if its disk has
    too little room.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    stored = _stored(model)
    groups = _groups(model, stored)
    sizes = {
        name: value.numel() * _rounded(value, dtype).itemsize
        for group in groups
        for name, value in _planned(model, group)
    }
    _on_first_rank(lambda: _begin(model, tokenizer, dtype, folder, unfinished, sum(sizes.values())))
    files = _files(sizes, shard_bytes)
    failed = _write(unfinished, files, _gathered(model, groups, dtype))
    _on_first_rank(lambda: _finish(failed, files, sizes, folder, unfinished))


def _stored(model: PreTrainedModel) -> dict[str, Tensor]:
    """Name -> parameter or buffer, of those that transformers stores: tied ones once."""
    state = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if name not in (model._keys_to_ignore_on_save or ())
    }
    names: dict[int, list[str]] = {}
    for name, value in state.items():
        names.setdefault(id(value), []).append(name)
    tied = model.all_tied_weights_keys  # name -> that of the tensor which is stored
    for same in names.values():
        for name in same:
            if tied.get(name) in same:
                del state[name]
    return state


def _groups(model: PreTrainedModel, stored: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """What must be at hand at once, to be stored as transformers does.

    Each tensor by itself, also one that becomes several (fused experts), unless several become one.
    """
    single = [{name: tensor} for name, tensor in stored.items()]
    apart = {name: value.shape for group in single for name, value in _planned(model, group)}
    together = {name: value.shape for name, value in _planned(model, stored)}
    return single if apart == together else [dict(stored)]


def _planned(model: PreTrainedModel, group: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names in the files and tensors without data."""
    empty = {
        name: torch.empty(full_shape(cast(Any, tensor)), dtype=tensor.dtype, device="meta")
        for name, tensor in group.items()
    }
    yield from revert_weight_conversion(model, empty).items()


def _gathered(
    model: PreTrainedModel, groups: Iterable[Mapping[str, Tensor]], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    """Gather each group on all ranks, and give it to rank 0: names in the files, on the CPU."""
    for group in groups:
        whole = {name: value for name, part in group.items() if (value := _whole(part)) is not None}
        for name, value in revert_weight_conversion(model, whole).items() if whole else ():
            yield name, value.to(_rounded(value, dtype))


def _rounded(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return tensor.dtype if dtype is None or not tensor.is_floating_point() else dtype


def _whole(tensor: Any) -> Tensor | None:
    """The whole tensor on rank 0's CPU, None on other ranks, which give their parts."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    elif hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping"):
        from freezetrain.freezing.zero import gathered, master

        stepped = master(tensor) if tensor.element_size() < 4 else None
        if stepped is not None:
            tensor = stepped
        elif hasattr(tensor, "ds_id"):
            tensor = gathered(tensor)
    return tensor.detach().cpu() if _is_first() else None


def _files(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """File -> names of the tensors in it, in order."""
    names = split_into_shards(sizes, limit)
    if len(names) == 1:
        return {_SINGLE: names[0]}
    count = len(names)
    return {f"model-{n + 1:05}-of-{count:05}.safetensors": held for n, held in enumerate(names)}


def _write(
    folder: Path, files: Mapping[str, Sequence[str]], tensors: Iterable[tuple[str, Tensor]]
) -> str | None:
    """Write the files. A failure is returned: the other ranks are still gathering."""
    failed = None
    left = iter(files.items())
    held: dict[str, Tensor] = {}
    file, names = next(left)
    for name, value in tensors:
        held[name] = value.contiguous()
        if len(held) == len(names):
            try:
                if failed is None:
                    save_file(held, folder / file, {"format": "pt"})
            except (OSError, SafetensorError) as error:
                failed = str(error)
            held = {}
            file, names = next(left, ("", ()))
    return failed


def _begin(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype | None,
    folder: Path,
    unfinished: Path,
    size: int,
) -> None:
    """Write all but the weights."""
    if folder.exists():
        raise UserError(f"{folder} exists already; move it away, nothing was overwritten")
    require_space(folder, size, "the trained model")
    if unfinished.exists():  # of an export that was killed
        shutil.rmtree(unfinished)
    with without_progress_bars():
        model.save_pretrained(unfinished, state_dict={})
    if dtype is not None:  # save_pretrained said the one of the weights in memory
        model.config.dtype = dtype
        model.config.save_pretrained(unfinished)
    (unfinished / _SINGLE).unlink(missing_ok=True)  # of no weights
    tokenizer.save_pretrained(unfinished)


def _finish(
    failed: str | None,
    files: Mapping[str, Sequence[str]],
    sizes: Mapping[str, int],
    folder: Path,
    unfinished: Path,
) -> None:
    if failed is not None:
        raise UserError(_not_written(f"{failed} in {unfinished}"))
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        (unfinished / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, folder)


def _not_written(why: str) -> str:
    return (
        f"could not write the trained model: {why}; make room there and start the command again, "
        "it goes on from the last checkpoint"
    )


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _on_first_rank(act: Callable[[], None]) -> None:
    """Act on rank 0. What it refuses, all refuse."""
    refusal: list[str | None] = [None]
    if _is_first():
        try:
            act()
        except UserError as error:
            refusal = [str(error)]
        except (OSError, SafetensorError) as error:  # the others are waiting
            refusal = [_not_written(str(error))]
    if dist.is_initialized():
        dist.broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise UserError(refusal[0])
