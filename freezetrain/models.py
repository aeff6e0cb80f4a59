"""Loading a causal language model, its configuration and its tokenizer."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.utils import cached_file, is_flash_attn_2_available

from freezetrain.errors import UserError
from freezetrain.forward import context_length
from freezetrain.freezing.weights_folder import WeightsFolder, quantization
from freezetrain.hub_network import offline_unless_reachable
from freezetrain.model_files import check_runs, check_weights, few_modules
from freezetrain.places import COPY, check_tokenizer_there, require_model, setting_with
from freezetrain.recipe.sources import Dtype, ModelSource
from freezetrain.stored_model import (
    download,
    lacking,
    refuse_quantized,
    say,
    take_ties,
    take_type,
    weights_here,
    without_progress_bars,
)
from freezetrain.user_files import reading, verbose

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def on_gpu(model: "PreTrainedModel") -> "PreTrainedModel":
    """Move the model to the GPU if there is one, to score or evaluate; training moves it itself."""
    if torch.cuda.is_available():
        nn.Module.to(model, "cuda")
    return model


@contextmanager
def _loading(what: str, source: ModelSource, remedy: str = COPY) -> Iterator[None]:
    """What transformers raises inside, as a UserError that says where it looked."""
    require_model(source)
    with offline_unless_reachable(), reading(f"the {what}", source.path, remedy):
        try:
            yield
        except KeyError as error:  # transformers looks up names, such as activations, in dicts
            value = error.args[0] if error.args else None
            if Path(source.place).is_dir() and (name := setting_with(value, Path(source.place))):
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


def _torch_dtype(dtype: Dtype, config: "PretrainedConfig") -> torch.dtype | None:
    """``config``: as :func:`describe` gives it, which says what the files hold."""
    stored = cast(torch.dtype | None, config.dtype)
    return stored if dtype == "stored" else getattr(torch, dtype)


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
        dtype=_torch_dtype(source.dtype, config),
        attn_implementation=_attention(source, config, in_16_bits),
        trust_remote_code=source.trust_remote_code,
    ).eval()


@dataclass(frozen=True)
class Described:
    """A model before its weights are loaded."""

    config: "PretrainedConfig"
    """What config.json says, and of types and ties what the files hold."""
    files: WeightsFolder | None
    """None: they are not here."""


def fetch(source: ModelSource) -> None:
    """Download the weights of an id on the hub, whose headers say what the model is."""
    if not Path(source.place).is_dir():
        with _loading("model", source):
            download(source.place, source.revision)


def describe(source: ModelSource, quantized: bool = False) -> Described:
    """What ``source`` is, from its configuration and the headers of its files.

    ``quantized``: weights that transformers dequantizes as it runs are taken too. Raises UserError
    as :func:`load_model`.
    """
    config = _load_config(source)
    with _loading("model", source):
        files = weights_here(source.place, source.revision)
    if quantized and quantization(config) is not None:
        return Described(config, None)
    refuse_quantized(source.path, config, files)
    if files is not None:
        take_type(config, files)
    return Described(config, files)


def load_model(
    source: ModelSource,
    random_weights: bool = False,
    in_16_bits: bool | None = None,
    described: Described | None = None,
    quantized: bool = False,
) -> "PreTrainedModel":
    """The model in eval mode on the CPU, or a new one of its configuration with random weights.

    ``in_16_bits``: whether it will compute in 16 bits, which flash attention needs; None: whether
    ``source.dtype`` has 16 bits. ``described``: what :func:`checked` gave. ``quantized``: only
    evaluate it, so that it may be stored quantized where transformers can run that.

    Raises UserError if it cannot be found or loaded, if flash attention is asked for and cannot be
    had, if its weights are stored quantized, or if some are missing from its files, in excess or of
    another shape: freshly initialized ones would make every figure meaningless.
    """
    if in_16_bits is None:
        in_16_bits = source.dtype in ("bfloat16", "float16")
    if described is None:
        described = checked(source, random_weights, in_16_bits, quantized)
    config = described.config
    with _loading("model", source), without_progress_bars():
        if random_weights:
            return _new(source, config, in_16_bits)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            source.place,
            config=config,
            dtype=_torch_dtype(source.dtype, config),
            attn_implementation=_attention(source, config, in_16_bits),
            output_loading_info=True,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(lacking(source.path, missing, model))
    if described.files is None and (unused := sorted(report["unexpected_keys"])):
        raise UserError(  # nobody has looked into the files before
            f"the files of {source.path} hold {len(unused)} tensors that the model of its "
            f"config.json does not use, first {unused[0]!r}; give a complete model"
        )
    if (method := quantization(config)) is not None:
        say(f"the weights of {source.path} are stored quantized ({method}), as it is evaluated")
        if quantization(model.config) is None and source.dtype != "stored":  # dequantized
            nn.Module.to(model, _torch_dtype(source.dtype, config))
    return model.eval()


def checked(
    source: ModelSource,
    random_weights: bool,
    in_16_bits: bool | None,
    quantized: bool = False,
) -> Described:
    """As :func:`describe`, of files that were fetched, with all checked that headers can tell."""
    if in_16_bits is None:
        in_16_bits = source.dtype in ("bfloat16", "float16")
    if not random_weights:
        fetch(source)
    return _shape(source, in_16_bits, random_weights, quantized)[1]


def meta_model(
    source: ModelSource,
    in_16_bits: bool | None = None,
    random_weights: bool = False,
    quantized: bool = False,
) -> "PreTrainedModel":
    """The model without weights (on the meta device): names, shapes and types, in seconds.

    Its folder needs a config.json only. Raises UserError as load_model does, and, unless it is to
    get random weights, where those in its folder are not this model's.
    """
    if in_16_bits is None:
        in_16_bits = source.dtype in ("bfloat16", "float16")
    return _shape(source, in_16_bits, random_weights, quantized)[0]


def _shape(
    source: ModelSource,
    in_16_bits: bool,
    random_weights: bool = False,
    quantized: bool = False,
) -> tuple["PreTrainedModel", Described]:
    """The model without weights, and what the headers of its files say, which fit it."""
    described = describe(source, quantized)
    with _loading("model", source), few_modules(source.path):
        with torch.device("meta"):
            model = _new(source, described.config, in_16_bits)
        if not source.trust_remote_code:
            check_runs(model, source.path)
    if random_weights or described.files is None:
        return model, described
    check_weights(described.files, model)
    if take_ties(model, described.config, described.files):
        with _loading("model", source), torch.device("meta"):
            model = _new(source, described.config, in_16_bits)
    return model, described


def _load_config(source: ModelSource) -> "PretrainedConfig":
    with _loading("model's configuration", source):
        return transformers.AutoConfig.from_pretrained(
            source.place, revision=source.revision, trust_remote_code=source.trust_remote_code
        )


def stored_dtype(source: ModelSource) -> torch.dtype | None:
    """The type that the model's files hold its weights in, the narrowest that holds them all.

    Where they are not here it is what the configuration says; None where that says nothing.
    """
    return cast(torch.dtype | None, describe(source).config.dtype)


def stored_dtypes(source: ModelSource) -> dict[str, torch.dtype]:
    """Name in the files -> type, of each weight; empty: they are not here."""
    files = describe(source).files
    return {} if files is None else files.dtypes()


def local_folder(source: ModelSource) -> Path:
    """The folder that holds the model's files: its own, or the hub cache's snapshot."""
    if Path(source.place).is_dir():
        return Path(source.place)
    with offline_unless_reachable():
        config = cached_file(source.place, "config.json", revision=source.revision)
    if config is None:
        raise UserError(f"the hub's cache holds no config.json of {source.path!r}; load it first")
    return Path(config).parent


def load_tokenizer(source: ModelSource) -> "PreTrainedTokenizerBase":
    """The model's tokenizer. Raises UserError if it cannot be found or loaded."""
    _load_config(source)  # what is wrong with it is not the tokenizer's
    if (folder := Path(source.place)).is_dir():
        check_tokenizer_there(folder)
    remedy = "copy its files again, of the model that this one was made from"
    with _loading("tokenizer", source, remedy), _panics_kept_back():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            source.place, revision=source.revision, trust_remote_code=source.trust_remote_code
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


def check_loads(source: ModelSource) -> None:
    """UserError for what a model's configuration, headers and tokenizer tell before it runs."""
    describe(source, quantized=True)
    load_tokenizer(source)


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
