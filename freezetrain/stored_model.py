"""What a model's files hold decides what it is: types, quantization, ties and names, by headers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import get_checkpoint_shard_files

from freezetrain.errors import UserError
from freezetrain.freezing.weights_folder import (
    FLOATS,
    MissingWeightsError,
    WeightsFolder,
    is_computed,
    quantization,
    quantized,
)
from freezetrain.model_files import layers_left_out
from freezetrain.ranks import current_launch
from freezetrain.regions.base import fingerprint
from freezetrain.user_files import reading

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_log = logging.getLogger("freezetrain")

# In the order in which transformers looks for them.
_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

_ROWS = 1 << 24  # entries of two tensors that are compared at once


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Silence transformers' own bars, which say nothing about how long a job takes."""
    enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            transformers_logging.enable_progress_bar()


def download(path: str, revision: str | None) -> Path:
    """The snapshot, in the hub's cache, of the weights of a model of the hub; it is fetched."""
    for name in _NAMES:
        file = cached_file(
            path, name, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        if file is None:
            continue
        if name.endswith(".index.json"):
            get_checkpoint_shard_files(path, file, revision=revision)
        return Path(file).parent
    raise UserError(f"the hub holds no weights of {path!r}; give a model with safetensors")


def weights_here(path: str, revision: str | None) -> WeightsFolder | None:
    """The weights of a folder, or of the hub as far as they were fetched; None: there are none."""
    folder = Path(path)
    if not folder.is_dir():
        options = {"local_files_only": True, "_raise_exceptions_for_missing_entries": False}
        config = cached_file(path, "config.json", revision=revision, **options)
        if config is None:
            return None
        folder = Path(config).parent
        try:
            return WeightsFolder(folder)
        except MissingWeightsError:  # not all of them are fetched yet
            return None
    if not any((folder / name).is_file() for name in _NAMES):
        return None
    return WeightsFolder(folder)


def refuse_quantized(path: str, config: "PretrainedConfig", files: WeightsFolder | None) -> None:
    """UserError for a base whose weights are not stored as plain floating point."""
    if (method := quantization(config)) is not None:
        raise UserError(quantized(path, method))
    if files is not None:
        files.require_plain()


def take_type(config: "PretrainedConfig", files: WeightsFolder) -> None:
    """Let ``config`` say the type that the files hold: the narrowest that holds them all."""
    for part in config_parts(config):
        part.dtype = files.dtype()


def config_parts(config: "PretrainedConfig") -> "list[PretrainedConfig]":
    """``config`` and, where a model sees or hears too, those of its parts."""
    parts = (getattr(config, name, None) for name in config.sub_configs)
    return [config, *(part for part in parts if part is not None)]


def take_ties(model: "PreTrainedModel", config: "PretrainedConfig", files: WeightsFolder) -> bool:
    """Let ``config`` say that head and embedding are two where the files hold two that differ.

    ``model``: of ``config``, on any device. Raises UserError where the files do not hold the model:
    tensors that are missing, have other shapes or stand beside those of a layer and change what
    they mean (scales, biases, adapters). Others that the model does not have are told of. Returns
    whether ``config`` changed.
    """
    loaded, report = _from_headers(type(model), config, files)
    for name, _ in loaded.named_parameters(remove_duplicate=False):
        if name in files and files.headers[name].is_integer:
            raise UserError(quantized(files.path, f"{name!r} is {files.headers[name].dtype}"))
    if mismatched := sorted(report["mismatched_keys"]):
        name, stored, said = mismatched[0]
        raise UserError(
            f"config.json of {files.path} and its weights do not fit: {name!r} has the shape "
            f"{list(stored)} in the files, and {list(said)} by config.json; give the config.json "
            "that the weights were saved with"
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(lacking(files.path, missing, model))
    unexpected = sorted(report["unexpected_keys"])
    if layers := layers_left_out(loaded, set(unexpected)):
        raise UserError(
            f"config.json of {files.path} and its weights do not fit: the files hold {layers[0]} "
            "and config.json describes fewer layers; give the config.json that the weights were "
            "saved with"
        )
    _check_unexpected(loaded, files, unexpected)
    for first, second in loaded.all_tied_weights_keys.items():
        if loaded.get_parameter_or_buffer(first) is loaded.get_parameter_or_buffer(second):
            continue  # the files hold one
        if not _equal(loaded, files, first, second):
            for part in config_parts(config):
                if getattr(part, "tie_word_embeddings", False):
                    part.tie_word_embeddings = False
            say(
                f"config.json of {files.path} says that {first} and {second} are one tensor, and "
                "its files hold two that differ: they are used, trained and saved as two"
            )
            return True
    return False


def lacking(path: str | Path, missing: list[str], model: nn.Module) -> str:
    """The sentence that refuses files without the tensors ``missing``."""
    tied: Any = getattr(model, "_tied_weights_keys", None) or {}
    advice = "give a complete model"
    if set(missing) <= set(tied):
        advice += ", or let its config.json say tie_word_embeddings: true if they are the embedding"
    return (
        f"the files of {path} lack {len(missing)} of the model's weights, first {missing[0]!r}; "
        f"{advice}"
    )


def not_of_model(model: "PreTrainedModel", files: WeightsFolder) -> set[str]:
    """Names of tensors in the files that ``model``, of their config.json, has no parameter for."""
    from transformers.core_model_loading import revert_weight_conversion

    loaded, _ = _from_headers(type(model), model.config, files)
    # Those that the model has under two names (tied ones), too.
    parameters: dict[str, Any] = dict(loaded.named_parameters(remove_duplicate=False))
    names = set(revert_weight_conversion(loaded, parameters))
    # The files of a model without a head lack the name of the part that they are of.
    names |= {name.removeprefix(f"{loaded.base_model_prefix}.") for name in names}
    return set(files) - names


def fingerprint_of_files(model: "PreTrainedModel", files: WeightsFolder) -> str | None:
    """What :func:`freezetrain.regions.base.fingerprint` says of ``model`` once it is loaded.

    ``model``: without weights, of the configuration beside ``files``, of which 64 values a tensor
    are read. None where the files hold other tensors than it has in memory (fused experts).
    """
    from transformers.core_model_loading import revert_weight_conversion

    names = {}
    for name, parameter in model.named_parameters():
        shape = tuple(parameter.shape)
        converted = revert_weight_conversion(model, {name: parameter})
        if [tuple(tensor.shape) for tensor in converted.values()] != [shape]:
            return None
        (stored,) = converted
        # The files of a model without a head lack the name of the part that they are of.
        within = stored.removeprefix(f"{model.base_model_prefix}.")
        names[name] = within if within in files else files.stored_name(stored, shape)
    return fingerprint(model, read=lambda name, places: files.some(names[name], places))


def _from_headers(
    model_class: "type[PreTrainedModel]", config: "PretrainedConfig", files: WeightsFolder
) -> "tuple[PreTrainedModel, dict[str, Any]]":
    """A model without weights, loaded by transformers as it loads files, and its report."""
    state = {
        name: torch.empty(header.shape, dtype=FLOATS.get(header.dtype, torch.uint8), device="meta")
        for name, header in files.headers.items()
    }
    with reading("the weights of", files.path, "give a complete model"), without_progress_bars():
        loaded: Any = model_class.from_pretrained(
            None,
            config=deepcopy(config),
            state_dict=state,
            device_map={"": "meta"},
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, report = loaded
    return model, report


def _check_unexpected(model: "PreTrainedModel", files: WeightsFolder, names: list[str]) -> None:
    layers = {name for name, module in model.named_modules() if module._parameters and name}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name in names:
        parts = name.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts))}
        if beside := above & (layers | parameters):
            raise UserError(
                f"the files of {files.path} hold {name!r} beside the weights of {max(beside)!r}, "
                "which the model of its config.json does not use: a scale, a bias or an adapter, "
                "without which the weights mean another model; dequantize or merge it first"
            )
    names = [name for name in names if not is_computed(name, files.shape(name))]
    if names:
        say(
            f"{len(names)} tensors in the files of {files.path}, first {names[0]!r}, are not of "
            f"{type(model).__name__} and are left out: neither used nor saved"
        )


def _equal(model: "PreTrainedModel", files: WeightsFolder, first: str, second: str) -> bool:
    """Whether the files hold the same values for two tensors of ``model``, compared in pieces."""
    from transformers.core_model_loading import revert_weight_conversion

    names = []
    for name in (first, second):
        tensor = model.get_parameter_or_buffer(name)
        (stored,) = revert_weight_conversion(model, {name: tensor})
        names.append(
            stored if stored in files else stored.removeprefix(f"{model.base_model_prefix}.")
        )
    one, other = (files.headers[name] for name in names)
    rows = max(1, _ROWS * one.shape[0] // max(1, torch.Size(one.shape).numel()))
    return one.shape == other.shape and all(
        torch.equal(*(files.rows(name, row, row + rows).double() for name in names))
        for row in range(0, one.shape[0], rows)
    )


@cache
def say(sentence: str) -> None:
    """Once in a process, and of several that train together in the first."""
    if current_launch().rank == 0:
        _log.warning(sentence)
