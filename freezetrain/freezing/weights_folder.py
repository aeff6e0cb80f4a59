"""The weights of a Hugging Face model folder, read one tensor at a time."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from freezetrain.errors import UserError, near_misses
from freezetrain.freezing.layout import Shard
from freezetrain.user_files import is_file, read_json, reading

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"

_SAFE = ".safetensors"

_PICKLE, _PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""Types in which weights are what they say, without a scale beside them: safetensors' names."""

_INTEGERS = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
}

_CODES = {
    **{dtype: code for code, dtype in (*FLOATS.items(), *_INTEGERS.items())},
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}

# Last parts of names of tables and masks, which are computed and not trained, in files of older
# models: rotary frequencies (LLaMA), causal masks (GPT-2, GPT-NeoX, GPT-J), places (BERT, CLIP).
_COMPUTED = (
    "inv_freq",
    "original_inv_freq",
    "cos_cached",
    "sin_cached",
    "masked_bias",
    "causal_mask",
    "position_ids",
    "num_batches_tracked",
)

# Last parts of names of packed weights: GPTQ's qweight, MXFP4's gate_up_proj_blocks, and others.
_PACKED = re.compile(r"(weight|packed|blocks|scales|zeros|codes|absmax)[^.]*$")

# Where configurations say that weights are quantized: transformers, MLX, compressed-tensors.
_QUANTIZED = ("quantization_config", "quantization", "compression_config")


class MissingWeightsError(UserError):
    """A folder without weights, or without a shard that its index names."""


@dataclass(frozen=True)
class Header:
    """What a file says of one of its tensors."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """F32, BF16, F8_E4M3, U8: as safetensors names types."""

    @property
    def is_float(self) -> bool:
        """Whether the tensor holds plain floating-point numbers."""
        return self.dtype in FLOATS

    @property
    def is_integer(self) -> bool:
        """Whether it holds whole numbers or truth values."""
        return self.dtype in _INTEGERS


def is_computed(name: str, shape: tuple[int, ...]) -> bool:
    """Whether this is, by its name, a table or mask that a model computes, not a parameter."""
    leaf = name.rpartition(".")[2]
    return leaf in _COMPUTED or (leaf in ("bias", "mask") and len(shape) == 4)


class WeightsFolder(Mapping[str, Tensor]):
    """Parameter name -> tensor (CPU), as stored by ``save_pretrained`` in one file or in shards.

    Types, shapes and names are those of the files' headers, whatever config.json and an index say.
    Nothing else is read until a tensor is asked for, and no model is built. Tied weights are
    stored once, see :meth:`stored_name`. Files are safetensors or, where there are none,
    pytorch_model.bin, read as tensors alone. UserError for a folder without either, for a broken
    file, and for shards that do not hold what their index says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"expected a model folder, there is none at {self.path}")
        file = self.path / "config.json"
        config = read_json(file, "the file", "copy it again") if file.is_file() else {}
        self._config: dict[str, Any] = config if isinstance(config, dict) else {}
        text = self._config.get("text_config")
        self._text: dict[str, Any] = text if isinstance(text, dict) else {}
        self._pickles: dict[Path, dict[str, Tensor]] = {}  # those that tensors were asked of
        self.headers = self._read_headers()
        """Name of each stored tensor -> what its file says of it."""

    @classmethod
    def plain(cls, path: str | Path) -> Self:
        """A folder of which :meth:`require_plain` is true."""
        folder = cls(path)
        folder.require_plain()
        return folder

    def stored_name(self, name: str, shape: tuple[int, ...]) -> str:
        """The name under which the folder holds parameter ``name`` of ``shape``.

        Itself, or, unless config.json says that nothing is tied, the one tensor of that shape with
        a row for each token.
        """
        if name in self.headers:
            return name
        tied = self._setting("tie_word_embeddings", True)  # as for most models that do not say
        if tied and len(shape) == 2 and shape[0] == self._setting("vocab_size", None):
            same = [stored for stored, header in self.headers.items() if header.shape == shape]
            if len(same) == 1:
                return same[0]
        raise UserError(
            f"the weights in {self.path} hold no {name!r}{near_misses(name, self.headers)}; "
            "transformers stores some models under other names than they have in memory (fused "
            "experts): load both and compare those"
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor, from the file's header alone."""
        return self.headers[name].shape

    def dtype(self) -> torch.dtype | None:
        """The narrowest type that holds all weights, from the headers alone."""
        widest: torch.dtype | None = None
        for here in set(self.dtypes().values()):
            widest = here if widest is None else torch.promote_types(widest, here)
        return widest

    def dtypes(self) -> dict[str, torch.dtype]:
        """Name -> type of each tensor of floating point, but of tables and masks."""
        return {
            name: FLOATS[header.dtype]
            for name, header in self.headers.items()
            if header.is_float and not is_computed(name, header.shape)
        }

    def require_plain(self) -> None:
        """UserError unless all weights are stored as plain floating point, with no scale beside."""
        method = quantization(self._config)
        for name, header in self.headers.items():
            # Whole numbers may also be masks, counts, places in tables.
            packed = header.is_integer and _PACKED.search(name)
            if packed or not (header.is_float or header.is_integer):
                method = method or f"{name!r} is {header.dtype}"
                break
        if method is not None:
            raise UserError(quantized(self.path, method))

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last``, not included, of a stored tensor; nothing else is read."""
        file = self.headers[name].file
        if file.suffix != _SAFE:
            return self._unpickled(file)[name][first:last].clone()
        with self._open(file) as opened:
            rows: Tensor = opened.get_slice(name)[first:last]
            return rows

    def some(self, name: str, places: Tensor) -> Tensor:
        """The values at flat indices [n] of a stored tensor; little more than them is read."""
        shape = self.shape(name)
        file = self.headers[name].file
        if file.suffix != _SAFE or len(shape) < 2:
            return self[name].flatten()[places]
        width = torch.Size(shape[1:]).numel()
        with self._open(file) as opened:
            stored = opened.get_slice(name)
            found = [
                stored[place // width : place // width + 1].flatten()[place % width]
                for place in places.tolist()
            ]
        return torch.stack(found) if found else torch.empty(0)

    def __getitem__(self, name: str) -> Tensor:
        file = self.headers[name].file
        if file.suffix != _SAFE:
            return self._unpickled(file)[name]
        with self._open(file) as opened:
            tensor: Tensor = opened.get_tensor(name)
            return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.headers  # a Mapping would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self.headers)

    def __len__(self) -> int:
        return len(self.headers)

    def _setting(self, name: str, otherwise: Any) -> Any:
        """What config.json says of the language model."""
        return self._config.get(name, self._text.get(name, otherwise))

    def _read_headers(self) -> dict[str, Header]:
        files, index = self._locate()
        headers: dict[str, Header] = {}
        for file in files:
            for name, header in self._headers_of(file):
                if name in headers:
                    raise UserError(
                        f"{headers[name].file} and {file.name} both hold {name!r}, so that nobody "
                        "can tell which counts; save the model again"
                    )
                headers[name] = header
        absent = [name for name in index if name not in headers]
        if absent:
            raise UserError(
                f"the index in {self.path} says that {index[absent[0]]} holds {absent[0]!r}, and "
                f"no shard does{near_misses(absent[0], headers)}; save or copy the model again"
            )
        return headers

    def _locate(self) -> tuple[list[Path], dict[str, str]]:
        """The files that transformers reads, and what their index says: name -> file."""
        for single, index in ((_SINGLE, _INDEX), (_PICKLE, _PICKLE_INDEX)):
            if (self.path / single).is_file():
                return [self.path / single], {}
            if (self.path / index).is_file():
                return self._shards(self.path / index)
        raise MissingWeightsError(
            f"{self.path} holds neither {_SINGLE} nor {_INDEX}, nor {_PICKLE}: expected a folder "
            "written by save_pretrained, with weights as safetensors"
        )

    def _shards(self, path: Path) -> tuple[list[Path], dict[str, str]]:
        content = read_json(path, "the index of the weights", "copy it again")
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            expected = "a weight_map of names and files"
            if not isinstance(content, dict):
                expected = f"a mapping, got {type(content).__name__}"
            raise UserError(
                f"cannot read the index of the weights {path}: expected {expected}; copy it again"
            )
        for name, filename in names.items():
            if Path(filename).name != filename or not is_file(self.path / filename):
                raise MissingWeightsError(
                    f"the shard {filename} of {self.path}, with {name!r}, is missing; copy all "
                    "files of the model into one folder"
                )
        return [self.path / filename for filename in dict.fromkeys(names.values())], names

    def _headers_of(self, file: Path) -> Iterator[tuple[str, Header]]:
        if file.suffix == _SAFE:
            with self._open(file) as opened:
                for name in opened.keys():  # noqa: SIM118
                    part = opened.get_slice(name)
                    yield name, Header(file, tuple(part.get_shape()), part.get_dtype())
            return
        remedy = "save the weights as safetensors, where you trust the file, and give these"
        with reading("the weights", file, remedy):
            tensors = torch.load(file, map_location="meta", weights_only=True)  # reads no numbers
            if not isinstance(tensors, dict) or not all(
                isinstance(name, str) and isinstance(tensor, Tensor)
                for name, tensor in tensors.items()
            ):
                raise ValueError("expected a dict of tensors")
        for name, tensor in tensors.items():
            code = _CODES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.").upper())
            yield name, Header(file, tuple(tensor.shape), code)

    def _unpickled(self, file: Path) -> dict[str, Tensor]:
        """Tensors of a .bin file, which stay in it until they are used."""
        if file not in self._pickles:
            try:
                tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # as torch wrote them before 1.6: not to be mapped into memory
                tensors = torch.load(file, map_location="cpu", weights_only=True)
            self._pickles[file] = tensors
        return self._pickles[file]

    def _open(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is truncated or not a safetensors file ({error}); copy or save it again"
            ) from error


def quantization(config: Any) -> str | None:
    """How the weights of a model are quantized, by its configuration; None: it says nothing.

    ``config``: config.json's content, or transformers' object of it.
    """
    for part in (config, _get(config, "text_config")):
        for key in _QUANTIZED:
            if settings := _get(part, key):
                method = _get(settings, "quant_method")
                bits = _get(settings, "bits")
                if method is not None:
                    return str(getattr(method, "value", method))
                return key if bits is None else f"{bits} bits"
    return None


def quantized(where: str | Path, how: str) -> str:
    """The sentence that refuses a quantized base."""
    return (
        f"the weights of {where} are stored quantized ({how}), and entries can only be trained, "
        "frozen or named where they are stored as plain floating point; give the same model in "
        "bfloat16, float16 or float32, or dequantize it first and save it without a "
        "quantization_config"
    )


def _get(settings: Any, key: str) -> Any:
    if isinstance(settings, Mapping):
        return settings.get(key)
    return None if settings is None else getattr(settings, key, None)


def stored_part(shard: Shard, stored: Mapping[str, Tensor], what: str) -> Tensor:
    """The part of the tensor that ``stored`` has under the shard's name, of the shard's shape.

    ``what``: what ``stored`` is, for messages. UserError if it lacks the tensor or has another
    shape.
    """
    name = shard.key
    if isinstance(stored, WeightsFolder):
        name = stored.stored_name(name, shard.shape)
    if name not in stored:
        raise UserError(f"the {what} holds no {name!r}{near_misses(name, stored)}")
    whole = stored[name]
    if tuple(whole.shape) != shard.shape:
        raise UserError(
            f"{name!r} has shape {list(whole.shape)} in the {what} and {list(shard.shape)} in the "
            "model: give that of the base that the model was loaded from"
        )
    shape = shard.entries.shape
    return whole.detach().flatten()[shard.first : shard.first + shard.entries.numel].view(shape)
