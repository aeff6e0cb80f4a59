"""Loading a causal language model, its configuration and its tokenizer."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import cached_file, is_flash_attn_2_available
from transformers.utils import logging as transformers_logging

from freezetrain.errors import UserError
from freezetrain.forward import context_length
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.hub_network import offline_unless_reachable
from freezetrain.model_files import check_runs, check_weights, few_modules, layers_left_out
from freezetrain.places import COPY, check_tokenizer_there, require_model, setting_with
from freezetrain.recipe.sources import Dtype, ModelSource
from freezetrain.user_files import reading, verbose

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def on_gpu(model: "PreTrainedModel") -> "PreTrainedModel":
    """Move the model to the GPU if there is one, to score or evaluate; training moves it itself."""
    if torch.cuda.is_available():
        nn.Module.to(model, "cuda")
    return model


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


@contextmanager
def _loading(what: str, source: ModelSource, remedy: str = COPY) -> Iterator[None]:
    """What transformers raises inside, as a UserError that says where it looked."""
    require_model(source)
    with offline_unless_reachable(), reading(f"the {what}", source.path, remedy):
        try:
            yield
        except KeyError as error:  # transformers looks up names, such as activations, in dicts
            value = error.args[0] if error.args else None
            if Path(source.path).is_dir() and (name := setting_with(value, Path(source.path))):
                raise ValueError(
                    f"{name} is {value!r}, which transformers does not know"
                ) from error
            raise
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise UserError(
                f"the {what} {source.path} comes with Python code of its own (auto_map), which is "
                "not run unasked; read that code, then give model.trust_remote_code true, or give "
                "a model that transformers knows"
            ) from error


def _torch_dtype(dtype: Dtype) -> torch.dtype | str:
    return "auto" if dtype == "stored" else getattr(torch, dtype)


def _attention(source: ModelSource, config: "PretrainedConfig", in_16_bits: bool) -> str | None:
    """The implementation of attention that transformers is to use; None: it chooses."""
    installed = is_flash_attn_2_available()  # looks for a GPU too
    if source.attention == "flash_attention_2" and not installed:
        raise UserError(
            "model.attention is flash_attention_2 and it is not installed here; use sdpa, or "
            "install flash-attn, where there is a GPU"
        )
    if source.attention == "flash_attention_2" and not in_16_bits:
        raise UserError(
            "model.attention is flash_attention_2 and it computes in 16 bits, and this is in 32; "
            "use sdpa, or train in 16 bits"
        )
    if source.attention != "auto":
        return source.attention
    model = transformers.AutoModelForCausalLM._model_mapping.get(type(config), None)
    supported = getattr(model, "_supports_flash_attn", False)
    return "flash_attention_2" if installed and in_16_bits and supported else None


def _new(source: ModelSource, config: "PretrainedConfig", in_16_bits: bool) -> "PreTrainedModel":
    """With weights as they are initialized."""
    return transformers.AutoModelForCausalLM.from_config(
        config,
        dtype=config.dtype if source.dtype == "stored" else _torch_dtype(source.dtype),
        attn_implementation=_attention(source, config, in_16_bits),
        trust_remote_code=source.trust_remote_code,
    ).eval()


def load_model(
    source: ModelSource, random_weights: bool = False, in_16_bits: bool | None = None
) -> "PreTrainedModel":
    """The model in eval mode on the CPU, or a new one of its configuration with random weights.

    ``in_16_bits``: whether it will compute in 16 bits, which flash attention needs; None: whether
    ``source.dtype`` has 16 bits.

    Raises UserError if it cannot be found or loaded, if flash attention is asked for and cannot be
    had, or if weights are missing from its files: freshly initialized ones would make every figure
    meaningless.
    """
    if in_16_bits is None:
        in_16_bits = source.dtype in ("bfloat16", "float16")
    config = _load_config(source)
    if not is_deepspeed_zero3_enabled():  # under which weights are partitioned as they are made
        meta_model(source, in_16_bits, random_weights)
    with _loading("model", source), without_progress_bars():
        if random_weights:
            return _new(source, config, in_16_bits)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            source.path,
            dtype=_torch_dtype(source.dtype),
            attn_implementation=_attention(source, config, in_16_bits),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
        )
    model, report = loaded
    for name, stored, described in sorted(report["mismatched_keys"]):
        raise UserError(
            f"config.json of {source.path} and its weights do not fit: {name!r} has the shape "
            f"{list(stored)} in the files, and {list(described)} by config.json; give the "
            "config.json that the weights were saved with"
        )
    if layers := layers_left_out(model, set(report["unexpected_keys"])):
        raise UserError(
            f"config.json of {source.path} and its weights do not fit: the files hold {layers[0]} "
            "and config.json describes fewer layers; give the config.json that the weights were "
            "saved with"
        )
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"the files of {source.path} lack {len(missing)} of the model's weights, first "
            f"{missing[0]!r}; give a complete model"
        )
    return model.eval()


def meta_model(
    source: ModelSource, in_16_bits: bool | None = None, random_weights: bool = False
) -> "PreTrainedModel":
    """The model without weights (on the meta device): names, shapes and types, in seconds.

    Its folder needs a config.json only. Raises UserError as load_model does, and, unless it is to
    get random weights, where those in its folder are too few for it.
    """
    if in_16_bits is None:
        in_16_bits = source.dtype in ("bfloat16", "float16")
    config = _load_config(source)
    with _loading("model", source), few_modules(source.path):
        with torch.device("meta"):
            model = _new(source, config, in_16_bits)
        if not source.trust_remote_code:
            check_runs(model, source.path)
    if not random_weights and (folder := Path(source.path)).is_dir():
        check_weights(folder, model)
    return model


def _load_config(source: ModelSource) -> "PretrainedConfig":
    with _loading("model's configuration", source):
        return transformers.AutoConfig.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )


def stored_dtype(source: ModelSource) -> torch.dtype | None:
    """The type that the model's files hold its weights in: by its configuration or, where that
    says nothing, by a folder's files; None where those are not here either."""
    dtype = cast(torch.dtype | None, _load_config(source).dtype)
    if dtype is None and any(Path(source.path).glob("model.safetensors*")):
        return WeightsFolder(source.path).dtype()
    return dtype


def local_folder(source: ModelSource) -> Path:
    """The folder that holds the model's files: its own, or the hub cache's snapshot."""
    if Path(source.path).is_dir():
        return Path(source.path)
    config = cached_file(source.path, "config.json", revision=source.revision)
    if config is None:
        raise UserError(f"the hub's cache holds no config.json of {source.path!r}; load it first")
    return Path(config).parent


def load_tokenizer(source: ModelSource) -> "PreTrainedTokenizerBase":
    """The model's tokenizer. Raises UserError if it cannot be found or loaded."""
    _load_config(source)  # what is wrong with it is not the tokenizer's
    if (folder := Path(source.path)).is_dir():
        check_tokenizer_there(folder)
    remedy = "copy its files again, of the model that this one was made from"
    with _loading("tokenizer", source, remedy), _panics_kept_back():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.path, revision=source.revision, trust_remote_code=source.trust_remote_code
        )
        vocabulary = tokenizer.get_vocab()
        if tokenizer.is_fast and len(set(vocabulary.values())) < len(vocabulary):
            raise ValueError("two of its tokens have the same number")
        tokenizer(_SAMPLE)  # what is wrong shows here, not in the midst of a job
    return tokenizer


_SAMPLE = "The sun, 3 x 14.5; Das Meer überall. Солнце и море\n日が昇る。 الشمس \U0001f305"


@contextmanager
def _panics_kept_back() -> Iterator[None]:
    """What libraries in Rust print of a panic before they raise it, shown with ``--verbose`` only.

    They write to the file descriptor, past ``sys.stderr``.
    """
    if verbose():
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def check_fit(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", sequence_length: int
) -> None:
    """UserError if the tokenizer has tokens, or a sequence has places, that the model lacks."""
    rows = int(cast(Tensor, model.get_input_embeddings().weight).shape[0])
    tokens = max(len(tokenizer), max(tokenizer.get_vocab().values(), default=0) + 1)
    if tokens > rows:
        raise UserError(
            f"the tokenizer has {tokens} tokens and the model embeds {rows}; give the "
            "tokenizer that the model was trained with"
        )
    check_length(model, sequence_length)


def check_length(model: "PreTrainedModel", sequence_length: int) -> None:
    """UserError if a sequence has places that the model lacks."""
    if sequence_length > (context := context_length(model) or sequence_length):
        raise UserError(
            f"sequence_length is {sequence_length} tokens and the model was built for {context}; "
            f"use {context} or less"
        )
