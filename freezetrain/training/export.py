"""A trained model as a Hugging Face folder, gathered tensor by tensor from where its parts lie."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from freezetrain.errors import UserError
from freezetrain.files import remove_unfinished, require_space, whole
from freezetrain.ranks import is_first_rank, together
from freezetrain.regions.parameters import full_shape
from freezetrain.regions.storage import split_into_shards
from freezetrain.stored_model import config_parts, without_progress_bars
from freezetrain.training.reload import Reload

SHARD_BYTES = 5_000_000_000

_SINGLE = "model.safetensors"

_INDEX = "model.safetensors.index.json"


Types = torch.dtype | Mapping[str, torch.dtype] | None
"""What weights are rounded to: one type, one for each name in the files, or as they are held."""


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    shard_bytes: int = SHARD_BYTES,
    dtype: Types = None,
    tied_head: bool = False,
) -> None:
    """Write ``folder`` in Hugging Face format, whole or not at all.

    ``model`` is whole, partitioned by ZeRO-3 or sharded by FSDP2. Every rank calls this and rank 0
    writes: the weights are gathered one at a time, rounded to ``dtype`` (of several the widest, for
    names without one) and leave for a file whenever ``shard_bytes`` of them are there. Where
    DeepSpeed trains in 16 bits, what is rounded is the fp32 masters, which its optimizer steps.
    ``tied_head``: a head that is tied to the embedding is written too, under its own name.
    Only a model of which transformers joins several tensors into one as it saves is gathered whole,
    in rank 0's memory. Before the folder gets its name rank 0 loads it again and compares it with
    what was in memory.

    Raises UserError, on all ranks, if the folder exists or cannot be written, or if its disk has
    too little room. CheckError if what was written loads as another model.
    """
    stored, names = _stored(model, tied_head)
    groups = _groups(model, stored)
    rounded = {name: kind for group in groups for name, kind in _types(model, group, dtype)}
    sizes = {
        name: value.numel() * value.element_size()
        for group in groups
        for name, value in _planned(model, group, rounded)
    }
    files = _files(sizes, shard_bytes)
    new = folder
    reload = Reload(model, names)
    with ExitStack() as stack:
        with _written():
            if is_first_rank():
                _check(folder, sum(sizes.values()))
                new = stack.enter_context(whole(folder))
                widest = _widest(kind for kind in rounded.values() if kind.is_floating_point)
                _write_rest(model, tokenizer, widest, files, sizes, new)
        failure = _write_weights(new, files, _gathered(model, groups, rounded, reload))
        with _written():
            if failure is not None:
                raise failure
            if is_first_rank():
                reload.check(new)
            stack.close()  # the folder gets its name


def _stored(model: PreTrainedModel, tied_head: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name -> parameter or buffer, of those that transformers stores, tied ones once.

    But for a ``tied_head``, if that is asked for. And of each name that the model has for one of
    them -> the name that is stored.
    """
    state = {
        name: value
        for name, value in model.state_dict(keep_vars=True).items()
        if name not in (model._keys_to_ignore_on_save or ())
    }
    names: dict[int, list[str]] = {}
    for name, value in state.items():
        names.setdefault(id(value), []).append(name)
    tied = dict(model.all_tied_weights_keys)  # name -> that of the tensor which is stored
    if tied_head:
        head = model.get_output_embeddings()
        module = next((name for name, module in model.named_modules() if module is head), "")
        tied.pop(f"{module}.weight", None)
    under = {name: name for name in state}
    for same in names.values():
        for name in same:
            if tied.get(name) in same:
                del state[name]
                under[name] = tied[name]
    return state, under


def _groups(model: PreTrainedModel, stored: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """What must be at hand at once, to be stored as transformers does.

    Each tensor by itself, also one that becomes several (fused experts), unless several become one.
    """
    single = [{name: tensor} for name, tensor in stored.items()]
    apart = {name: value.shape for group in single for name, value in _planned(model, group)}
    together = {name: value.shape for name, value in _planned(model, stored)}
    return single if apart == together else [dict(stored)]


def _planned(
    model: PreTrainedModel,
    group: Mapping[str, Tensor],
    types: Mapping[str, torch.dtype] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Names in the files and tensors without data; ``types``: name in the model -> type there."""
    empty = {
        name: torch.empty(
            full_shape(cast(Any, tensor)),
            dtype=tensor.dtype if types is None else types[name],
            device="meta",
        )
        for name, tensor in group.items()
    }
    yield from revert_weight_conversion(model, empty).items()


def _types(
    model: PreTrainedModel, group: Mapping[str, Tensor], dtype: Types
) -> Iterator[tuple[str, torch.dtype]]:
    """Name in the model -> type that it is rounded to.

    What is stored together is in one type, the widest that a part of it has by ``dtype``.
    """
    by_name: torch.dtype | None = None
    if isinstance(dtype, Mapping):
        prefix = f"{model.base_model_prefix}."
        widest = _widest(dtype.values())
        by_name = _widest(
            # The files of a base without a head lack the name of the part that they are of.
            dtype.get(name) or dtype.get(name.removeprefix(prefix)) or widest
            for name, value in _planned(model, group)
            if value.is_floating_point()
        )
    for name, tensor in group.items():
        if not tensor.is_floating_point():
            yield name, tensor.dtype
        elif isinstance(dtype, torch.dtype):
            yield name, dtype
        else:
            yield name, by_name or _held(tensor)


def _widest(types: Iterable[torch.dtype | None]) -> torch.dtype | None:
    widest = None
    for kind in types:
        if kind is not None:
            widest = kind if widest is None else torch.promote_types(widest, kind)
    return widest


def _gathered(
    model: PreTrainedModel,
    groups: Iterable[Mapping[str, Tensor]],
    types: Mapping[str, torch.dtype],
    reload: Reload,
) -> Iterator[tuple[str, Tensor]]:
    """Gather each group on all ranks, and give it to rank 0: names in the files, on the CPU.

    ``reload`` is told of each tensor as it is in memory, rounded.
    """
    for group in groups:
        tensors = {}
        for name, part in group.items():
            value = _whole(part)
            if value is not None:
                # A file holds no tensor twice, so that a tied head is one of its own.
                twice = name in model.all_tied_weights_keys
                tensors[name] = value.to(types[name], copy=twice)
                reload.expect(name, tensors[name])
        if is_first_rank():
            yield from revert_weight_conversion(model, tensors).items()


def _held(tensor: Any) -> torch.dtype:
    """A type that holds what :func:`_whole` gives: where DeepSpeed has one, the fp32 master."""
    masters = hasattr(tensor, "ds_id") or hasattr(tensor, "_hp_mapping")
    return torch.promote_types(tensor.dtype, torch.float32) if masters else tensor.dtype


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
    return tensor.detach().cpu() if is_first_rank() else None


def _files(sizes: Mapping[str, int], limit: int) -> dict[str, list[str]]:
    """File -> names of the tensors in it, in order."""
    names = split_into_shards(sizes, limit)
    if len(names) == 1:
        return {_SINGLE: names[0]}
    count = len(names)
    return {f"model-{n + 1:05}-of-{count:05}.safetensors": held for n, held in enumerate(names)}


def _write_weights(
    folder: Path, files: Mapping[str, Sequence[str]], tensors: Iterable[tuple[str, Tensor]]
) -> Exception | None:
    """Write the files. A failure is returned: the other ranks are still gathering."""
    failure: Exception | None = None
    left = iter(files.items())
    held: dict[str, Tensor] = {}
    file, names = next(left)
    for name, value in tensors:
        held[name] = value.contiguous()
        if len(held) == len(names):
            try:
                if failure is None:
                    save_file(held, folder / file, {"format": "pt"})
            except (OSError, SafetensorError) as error:
                failure = error
            held = {}
            file, names = next(left, ("", ()))
    return failure


def _check(folder: Path, size: int) -> None:
    if folder.exists():
        raise UserError(f"{folder} exists already; move it away, nothing was overwritten")
    remove_unfinished(folder)
    require_space(folder, size, "the trained model")


def _write_rest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: torch.dtype | None,
    files: Mapping[str, Sequence[str]],
    sizes: Mapping[str, int],
    folder: Path,
) -> None:
    """Write all but the weights."""
    with without_progress_bars():
        model.save_pretrained(folder, state_dict={})
    if dtype is not None:  # save_pretrained said the one of the weights in memory
        for part in config_parts(model.config):
            part.dtype = dtype
        model.config.save_pretrained(folder)
    (folder / _SINGLE).unlink(missing_ok=True)  # of no weights
    tokenizer.save_pretrained(folder)
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _written() -> Iterator[None]:
    """What this block refuses on rank 0, which alone writes in it, all ranks refuse."""
    with together():
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"could not write the trained model: {error}; make room there and start the "
                "command again, it goes on from the last checkpoint"
            ) from error
