"""Checkpoints that are one file, written and read without a copy of them in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO


class FileCheckpointIO(TorchCheckpointIO):
    """Lightning's, which builds the whole file in memory before it writes it, and reads it whole.

    Here tensors go to the file one by one, and are mapped into memory when it is read: what a run
    goes on with is copied from there, and the rest never read. A file that is removed while it is
    mapped stays until the mapping ends. Files are the same either way.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write ``checkpoint`` to ``path``. OSError where it cannot be written."""
        assert storage_options is None
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # closing its archive hides why a write has failed
                cause = error.__context__
                raise cause if isinstance(cause, OSError) else OSError(str(error)) from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = None,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """What ``path`` holds, on the CPU; never by pickle."""
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return loaded
