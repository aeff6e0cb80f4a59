"""An exported folder is loaded again and compared, bit by bit, with what was in memory."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from freezetrain.errors import CheckError
from freezetrain.stored_model import without_progress_bars
from freezetrain.user_files import libraries_silenced, reason


class Reload:
    """What a folder must load as: a checksum of each tensor, taken as it is written.

    ``names``: each name that ``model`` has for a tensor -> the name that is stored.
    """

    def __init__(self, model: PreTrainedModel, names: Mapping[str, str]) -> None:
        self._class: Any = next(c for c in type(model).__mro__ if not issubclass(c, FSDPModule))
        self._not_stored = set(model._keys_to_ignore_on_save or ())
        self._names = names
        self._expected: dict[str, tuple[torch.dtype, int]] = {}

    def expect(self, name: str, tensor: Tensor) -> None:
        """``tensor``, on the CPU, is what is written for ``name`` of the model."""
        self._expected[name] = tensor.dtype, _checksum(tensor)

    def check(self, folder: Path) -> None:
        """Load ``folder`` as transformers does, and compare.

        The files are mapped into memory, so that it takes no memory of its own, unless transformers
        holds tensors in another form than they are stored in (fused experts). CheckError, which
        names the first tensor, where a name or a bit is another.
        """
        loaded, report = self._load(folder)
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            for key in sorted(report[what]):
                name = key if isinstance(key, str) else key[0]
                raise _differs(folder, name, f"which transformers lists as {what}")
        state = loaded.state_dict()
        for name, stored in self._names.items():
            if name not in state:
                raise _differs(folder, name, "it is not there")
            dtype, checksum = self._expected[stored]
            if _checksum(state[name].to(dtype)) != checksum:
                raise _differs(folder, name, "its values are others")
        for name in state:
            if name not in self._names and name not in self._not_stored:
                raise _differs(folder, name, "it was not in memory")

    def _load(self, folder: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
        try:
            with (
                without_progress_bars(),
                libraries_silenced(),
                torch.random.fork_rng(devices=[]),
            ):
                loaded: Any = self._class.from_pretrained(
                    folder,
                    dtype="auto",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are named, too
                    local_files_only=True,
                )
        except Exception as error:
            raise _differs(folder, "the model", f"transformers says: {reason(error)}") from error
        model, report = loaded
        return model, report


def _checksum(tensor: Tensor) -> int:
    values: Any = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return crc32(values)


def _differs(folder: Path, name: str, why: str) -> CheckError:
    return CheckError(
        f"the model that was written for {folder.name} does not load as it was in memory: "
        f"{name!r}, {why}; nothing was exported, and checkpoints so far are kept"
    )
