"""Remarks of libraries on which a user cannot act are kept back, each at its source.

What is not listed here is shown: a warning that is new, or that a user can act on.
"""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO

from freezetrain.user_files import verbose

# Beginnings of warnings, as regular expressions: on what freezetrain has decided, and on calls
# that one library makes of another.
_WARNINGS = (
    r"The '\w+' does not have many workers",
    r"Consider setting `persistent_workers=True`",
    r"Checkpoint directory .* exists and is not empty",
    r"The dirpath has changed from",  # a run's folder was moved; it keeps no best checkpoint
    r"Found \d+ module\(s\) in eval mode at the start of training",
    r"Since DeepSpeed handles gradient clipping",
    r"When saving the DeepSpeed Stage 3 checkpoint",
    r"You're using the WeightAveraging callback with a model that overrides",
    r".*isinstance\(treespec, LeafSpec\)",
    r"`torch\.distributed\.\w+` is deprecated",
)

# Loggers whose notes (hardware, seeds, ranks, signals) say nothing of the result.
_QUIET = (
    "lightning.fabric.strategies.deepspeed",
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.strategies.deepspeed",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.pytorch.utilities.migration.utils",
    "lightning.pytorch.utilities.rank_zero",
)

# Logger -> beginnings of warnings that it logs.
_LOGGED = {
    "DeepSpeed": (
        "Setting accelerator to CPU",
        "MPU is not provided",
        "**** You are using ZeRO with an untested optimizer",  # which was tried
    ),
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm",),  # of what is not used here
}

_PRINTED = ("DeepSpeed deepspeed.ops.comm.",)  # of an operator that was built


class _KeptBack(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return verbose() or not record.getMessage().startswith(_LOGGED[record.name])


_FILTER = _KeptBack()


def keep_back() -> None:
    """Keep them back in this process from now on, unless all is to be shown.

    It may be called before the libraries are imported, which takes long, and more than once.
    """
    if verbose():
        return
    for beginning in _WARNINGS:
        warnings.filterwarnings("ignore", message=beginning)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _LOGGED:
        logging.getLogger(name).addFilter(_FILTER)


@contextmanager
def printed_kept_back() -> Iterator[None]:
    """Keep back what a library prints inside without a logger; all else follows at the end."""
    if verbose():
        yield
        return
    printed = StringIO()
    try:
        with redirect_stdout(printed):
            yield
    finally:
        for line in printed.getvalue().splitlines(keepends=True):
            if not line.startswith(_PRINTED):
                sys.stdout.write(line)
