"""What test_zero_faults.py and its worker program agree on."""

from typing import NamedTuple

AUDIT_EVERY = 2  # audited before steps 1, 2, 3, 5, ...

# Deliberate faults: what each does, and the step before which the audit has to find it. 0: the
# proof at the start of the freeze has to.
SKIPPED = "mask skipped"
NOT_MASKED = "mask writes nothing from step 2 on"
NOT_PUT_BACK = "guard writes nothing back"
FIRST = "shards begin one entry further in their parameters"
START = "shards begin one entry further in the flat partition"
COPY = "copy written to on one rank"
MASTER = "master written to"
RANKS_DIFFER = "ranks start with other values"
LOADED = "weights loaded after the engine was made"
STEPS = {
    SKIPPED: 1,
    NOT_MASKED: 2,
    NOT_PUT_BACK: 3,
    FIRST: 0,
    START: 0,
    COPY: 3,
    MASTER: 3,
    RANKS_DIFFER: 0,
    LOADED: 0,
}

# The frozen entry that COPY and MASTER write to: on rank 1, which has the parameter's second half.
WRITTEN = ("down.weight", 47)


class Cell(NamedTuple):
    engine: str
    dtype: str
    fault: str


_ZERO = [SKIPPED, NOT_MASKED, NOT_PUT_BACK, FIRST, START, COPY, MASTER, LOADED]
CELLS = [
    *(Cell("ZeRO-2", dtype, fault) for dtype in ("fp32", "bf16") for fault in _ZERO),
    *(Cell("DDP", "fp32", f) for f in (SKIPPED, NOT_MASKED, NOT_PUT_BACK, MASTER, RANKS_DIFFER)),
    *(Cell("FSDP2", "fp32", f) for f in (SKIPPED, NOT_MASKED, NOT_PUT_BACK, FIRST, MASTER)),
    *(Cell("ZeRO-3", d, f) for d in ("fp32", "bf16") for f in _ZERO),
]
