"""Steps whose update would do harm: a loss or gradient norm that is not finite, or a spike."""

import math
from collections import deque
from collections.abc import Mapping
from statistics import median
from typing import Any, Literal

from freezetrain.errors import DivergedError

KEPT = 100  # good norms that the median is of
NEEDED = 20  # good norms before a norm counts as a spike
IN_A_ROW = 10  # bad steps that end the run where they are skipped


class BadSteps:
    """Judges each optimizer step before its update.

    ``stop`` ends the run at the first bad step. ``skip`` has the caller leave the update out, and
    ends the run after ten bad steps in a row, when it is no longer the batches that are bad. A
    spike is a norm of more than ``spike_factor`` times the median of the last 100 good ones, of
    which there must be 20; bad steps do not enter the median. (Skipping a step with a spike:
    Chowdhery et al., "PaLM", arXiv 2204.02311, section 5.1, go back and skip the batches.)

    All ranks must be given the same values, and then decide the same.
    """

    def __init__(self, action: Literal["stop", "skip"], spike_factor: float | None = None) -> None:
        self.action = action
        self.spike_factor = spike_factor
        self.skipped = 0
        """Steps left out so far, over all starts of the run."""
        self._in_a_row = 0
        self._norms: deque[float] = deque(maxlen=KEPT)

    def is_bad(self, loss: float, norm: float | None, step: int) -> bool:
        """Whether to leave the update of optimizer step ``step``, counted from 1, out.

        ``loss`` is the step's, over all ranks and micro-batches; ``norm`` that of its gradients
        before clipping, None where the engine keeps it to itself. DivergedError where the run ends.
        """
        problem = self._problem(loss, norm)
        if problem is None:
            if norm is not None:
                self._norms.append(norm)
            self._in_a_row = 0
            return False
        if self.action == "stop":
            raise DivergedError(
                f"{problem} at step {step}; checkpoints so far are kept: lower the learning rate "
                "or look at the texts of that step, then start anew, or skip such steps with "
                "optimization.bad_steps=skip"
            )
        self.skipped += 1
        self._in_a_row += 1
        if self._in_a_row == IN_A_ROW:
            raise DivergedError(
                f"{problem} at step {step}, the {IN_A_ROW}th bad step in a row; checkpoints so far "
                "are kept: lower the learning rate, or raise optimization.spike_factor, then start "
                "anew"
            )
        return True

    def _problem(self, loss: float, norm: float | None) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if norm is None:
            return None
        if not math.isfinite(norm):
            return f"the gradient norm is {norm}"
        if self.spike_factor is not None and len(self._norms) >= NEEDED:
            usual = median(self._norms)
            if norm > self.spike_factor * usual:
                return (
                    f"the gradient norm is {norm:.3g}, more than {self.spike_factor:g} times the "
                    f"usual {usual:.3g},"
                )
        return None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a resumed run decides as an uninterrupted one."""
        norms = list(self._norms)
        return {"skipped": self.skipped, "in_a_row": self._in_a_row, "norms": norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.skipped = state["skipped"]
        self._in_a_row = state["in_a_row"]
        self._norms = deque(state["norms"], maxlen=KEPT)
