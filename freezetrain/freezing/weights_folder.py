"""The weights of a Hugging Face model folder, read one tensor at a time."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from freezetrain.errors import UserError, near_misses

_SINGLE = "model.safetensors"

_INDEX = "model.safetensors.index.json"

_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


class WeightsFolder(Mapping[str, Tensor]):
    """Parameter name -> tensor (CPU), as stored by ``save_pretrained`` in one file or in shards.

    Nothing is read but headers until a tensor is asked for, and no model is built. Tied weights
    are stored once, see :meth:`stored_name`. UserError for a folder without safetensors weights
    and for a broken file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"expected a model folder, there is none at {self.path}")
        self._config = _read_json(self.path / "config.json", missing={})
        self._files = self._locate()

    def stored_name(self, name: str, shape: tuple[int, ...]) -> str:
        """The name under which the folder holds parameter ``name`` of ``shape``.

        Itself, or for weights that config.json says are tied the one tensor of that shape with a
        row for each token.
        """
        if name in self._files:
            return name
        text = self._config.get("text_config") or {}
        tied = self._config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
        tokens = self._config.get("vocab_size", text.get("vocab_size"))
        if tied and len(shape) == 2 and shape[0] == tokens:
            same = [stored for stored in self if self.shape(stored) == shape]
            if len(same) == 1:
                return same[0]
        raise UserError(
            f"the weights in {self.path} hold no {name!r}{near_misses(name, self._files)}; "
            "transformers stores some models under other names than they have in memory (fused "
            "experts): load both and compare those"
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor, from the file's header alone."""
        with self._open(self._files[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def dtype(self) -> torch.dtype | None:
        """The narrowest type that holds all floating-point tensors, from the headers alone."""
        widest: torch.dtype | None = None
        for path in set(self._files.values()):
            with self._open(path) as file:
                for code in {file.get_slice(name).get_dtype() for name in file.keys()}:  # noqa: SIM118
                    if kind := _FLOATS.get(code):
                        widest = kind if widest is None else torch.promote_types(widest, kind)
        return widest

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last``, not included, of a stored tensor; nothing else is read."""
        with self._open(self._files[name]) as file:
            rows: Tensor = file.get_slice(name)[first:last]
            return rows

    def __getitem__(self, name: str) -> Tensor:
        with self._open(self._files[name]) as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._files  # a Mapping would read the tensor to find out

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _locate(self) -> dict[str, Path]:
        """Stored name -> file."""
        single = self.path / _SINGLE
        if single.is_file():
            with self._open(single) as file:
                return dict.fromkeys(file.keys(), single)
        index = _read_json(self.path / _INDEX, missing=None)
        if index is None:
            raise UserError(
                f"{self.path} holds neither {_SINGLE} nor {_INDEX}: expected a folder written by "
                "save_pretrained, with weights as safetensors"
            )
        weight_map = index.get("weight_map", {})
        for name, filename in weight_map.items():
            if Path(filename).name != filename or not (self.path / filename).is_file():
                raise UserError(f"the shard {filename} of {self.path}, with {name!r}, is missing")
        return {name: self.path / filename for name, filename in weight_map.items()}

    def _open(self, file: Path) -> Any:
        try:
            return safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{file} is truncated or not a safetensors file ({error}); copy or save it again"
            ) from error


def _read_json(path: Path, missing: Any) -> Any:
    if not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error})") from error
