"""A freeze over a training run: from one step to another, and on from a checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from freezetrain.errors import CheckError, UserError, near_misses
from freezetrain.freezing.handle import Freeze, FreezeOptions, freeze
from freezetrain.regions import Region


class RunFreeze:
    """What the callbacks of all trainers do; each calls this from its trainer's own hooks.

    :meth:`begin` once the optimizer exists and a checkpoint has been restored,
    :meth:`before_step` before the first backward pass of each optimizer step, :meth:`verify`
    before a checkpoint is written and at the end, :meth:`end` however the run ends; each on every
    rank. :attr:`state` goes into the checkpoint and comes back to :meth:`begin`.

    A run that is resumed takes the frozen values from the checkpoint: its trainable entries have
    moved since the base, so that the base is not looked at, and ``clamp`` and ``base`` have been
    applied before. They do apply where the region was not frozen when the checkpoint was written.
    """

    def __init__(self, region: Region | str | Path, options: FreezeOptions) -> None:
        """``region``: what is frozen, or its file. No model is looked at yet."""
        self.region = region if isinstance(region, Region) else Region.load(region)
        self.options = options
        self.handle: Freeze | None = None
        """The freeze while it holds."""
        self._trained: tuple[nn.Module, Any, bool | None] | None = None
        self._ended: str | None = None  # digest of what was frozen when the run ended
        self._began = False  # whether anything has been frozen in this run

    def begin(
        self,
        model: nn.Module,
        optimizer: Any,
        step: int,
        *,
        stored: Mapping[str, Any] | None = None,
        last_of_run: int | None = None,
        replicated: bool | None = None,
    ) -> None:
        """Freeze, or before ``first_step`` raise now what would be raised then.

        ``step``: optimizer steps made so far. ``stored``: :attr:`state` from the checkpoint that
        was restored; None on a fresh start and after a run without a freeze. ``last_of_run``:
        steps after which training is to end, where that is known. UserError for a freeze that
        would begin no sooner, for a checkpoint of another region and for other values, unless
        ``other_region``; and as :func:`freezetrain.freeze`.
        """
        first, last = self.options.first_step, self.options.last_step
        if last_of_run is not None and first >= last_of_run > step:
            raise UserError(
                f"first_step={first} lies beyond the run's {last_of_run} steps, so that "
                "nothing would be frozen: give a smaller one"
            )
        held = self._still_held(model)  # by an attempt at this run that an exception ended
        self.end()
        self._ended, self._began = None, False
        same = stored is not None and stored["region"] == self.region.digest
        if stored is not None and not same and not self.options.other_region:
            raise UserError(
                f"the checkpoint was trained with the region {stored['region'][:12]} frozen, got "
                f"{self.region.digest[:12]}: resume with the same region, start a new run from its "
                "weights, or say other_region=True"
            )
        self._trained = model, optimizer, replicated
        check_base = self.options.check_base and stored is None and not held
        if not self._holds(step):
            if last is None or step < last:
                self._freeze(step, check_base=check_base, as_it_is=True).remove()
                self._began = False  # only tried
            else:
                self._began = True  # in a start before
            return
        values = stored["values"] if stored is not None and same else None
        self.handle = self._freeze(step, check_base=check_base, as_it_is=values is not None)
        if values not in (None, self.handle.digest) and not self.options.other_region:
            self.end()
            self._ended = None
            raise UserError(
                "the restored values of the frozen entries are not those that the checkpoint was "
                "trained with: resume with the precision and the weights of that run, or say "
                "other_region=True"
            )

    def before_step(self, step: int) -> None:
        """Begin or end the freeze where the step after ``step`` others is the first or last."""
        if self.handle is not None:
            self.handle.counts_from(step)
        if self.handle is None and self._trained is not None and self._holds(step):
            self.handle = self._freeze(step, check_base=False)
        elif self.handle is not None and not self._holds(step):
            self.verify()
            self.handle.remove()
            self.handle = None

    def require_begun(self, step: int) -> None:
        """CheckError if the freeze was due within the run's ``step`` steps and never began.

        For trainers' loops that may not call the hooks by which it begins.
        """
        if self._trained is not None and not self._began and self.options.first_step < step:
            raise CheckError(
                f"the freeze was to begin at step {self.options.first_step} and never did in "
                f"{step} steps: this loop calls no hook of the callback between steps; call "
                "freezetrain.freeze in the loop itself, or freeze from step 0 on"
            )

    def verify(self) -> None:
        """CheckError if a frozen entry has moved; nothing to do while none is frozen."""
        if self.handle is not None:
            self.handle.verify()

    def end(self) -> None:
        """Let the region train again and forget the model. May be called twice."""
        if self.handle is not None:
            self._ended = self.handle.digest
            self.handle.remove()
        self.handle = self._trained = None

    @property
    def state(self) -> dict[str, str | None]:
        """Digests of the region and of the values that are frozen now, None where none are.

        After :meth:`end` still those: a checkpoint may be written once training is over.
        """
        values = self._ended if self.handle is None else self.handle.digest
        return {"region": self.region.digest, "values": values}

    def _holds(self, step: int) -> bool:
        first, last = self.options.first_step, self.options.last_step
        return first <= step and (last is None or step < last)

    def _freeze(self, step: int, *, check_base: bool, as_it_is: bool = False) -> Freeze:
        """``as_it_is``: the entries have their values, which neither clamp nor base may change."""
        assert self._trained is not None
        model, optimizer, replicated = self._trained
        handle = freeze(
            model,
            optimizer,
            self.region,
            check_base=check_base,
            clamp=None if as_it_is else self.options.clamp,
            base=None if as_it_is else self.options.base,
            audit_every=self.options.audit_every,
            replicated=replicated,
        )
        handle.counts_from(step)
        self._began = True
        return handle

    def _still_held(self, model: nn.Module) -> bool:
        """Whether ``model`` has been frozen by this all along, so that its base was looked at."""
        if self.handle is None or self._trained is None or self._trained[0] is not model:
            return False
        try:
            self.handle.verify()
        except (CheckError, UserError):
            return False
        return True


def find_module(model: nn.Module, path: str | None) -> nn.Module:
    """The submodule of ``model`` at a dotted ``path``; the model itself for None or ""."""
    if not path:
        return model
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        known = [name for name, _ in model.named_modules()]
        raise UserError(
            f"{type(model).__name__} has no module {path!r}{near_misses(path, known)}"
        ) from error
