"""Options of a freeze, shared by ``freeze``, by RunFreeze and by the callbacks of all trainers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from freezetrain.errors import UserError


@dataclass(kw_only=True, eq=False, repr=False)
class FreezeOptions:
    """How a region is frozen, and during which steps of a run.

    Raises UserError for values that cannot work.
    """

    check_base: bool = True
    """Refuse a model that is not the base named in the region. A frozen run that is resumed does
    not look: its trainable entries have moved since."""
    clamp: float | None = None
    """Set the frozen entries to this value when the freeze begins, not again on resuming; 0 is the
    paper's second variant. A callback that is to see the base as it was stands before this one."""
    base: str | Path | Mapping[str, Tensor] | None = None
    """Folder of the base's weights, or parameter name -> tensor: start the frozen entries of fp32
    masters from these stored values, not from the 16-bit weights that they were rounded to."""
    audit_every: int = 100
    """Optimizer steps between two audits; the first two steps are always audited. 0: entries are
    only compared where the freeze is verified, as before a checkpoint is written."""
    first_step: int = 0
    """Optimizer steps, counted from the start of the whole run, before the freeze begins. It begins
    and ends between two batches, also where manual optimization makes several steps in one."""
    last_step: int | None = None
    """The freeze ends before this step, so that steps ``first_step`` to ``last_step - 1`` are
    frozen. None: it lasts to the end of training."""
    other_region: bool = False
    """Go on from a checkpoint that was trained with another region, or that holds other values than
    were frozen."""

    def __post_init__(self) -> None:
        if self.audit_every < 0:
            raise UserError(f"audit_every must be 0 or more steps, got {self.audit_every}")
        if self.clamp is not None and self.base is not None:
            raise UserError("clamp and base both say what the frozen entries start from: give one")
        first, last = self.first_step, self.last_step
        if first < 0 or (last is not None and last <= first):
            raise UserError(
                f"expected 0 <= first_step < last_step, got {first} and {last}: the freeze holds "
                "from first_step on and ends before last_step"
            )
        if first and self.base is not None:
            raise UserError(
                "base says what the frozen entries start from, which is not where they are after "
                f"first_step={first} steps of training: leave base out or freeze from step 0"
            )

    @property
    def from_the_start(self) -> bool:
        """Whether the region is frozen as it is in the base, from the first step on."""
        return self.first_step == 0 and self.clamp is None
