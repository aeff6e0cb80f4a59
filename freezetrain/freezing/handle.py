"""Freezing a region in any training loop: the options, one call, and the handle it returns."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.forward import reshard
from freezetrain.freezing.audit import Audit
from freezetrain.freezing.copies import Copies
from freezetrain.freezing.engines import lay_out, refuse_unsupported
from freezetrain.freezing.hooks import GradientMask, StepGuard
from freezetrain.freezing.layout import Layout, Shard, prove
from freezetrain.freezing.optimizers import OptimizerLike
from freezetrain.freezing.weights_folder import WeightsFolder, stored_part
from freezetrain.regions import Region, Resolved
from freezetrain.regions.adapters import adapted_parameters

_log = logging.getLogger("freezetrain")


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
    """Optimizer steps, counted from the start of the whole run as the trainer's ``global_step``
    does, before the freeze begins. It begins and ends between two batches, also where manual
    optimization makes several steps in one: Lightning counts each step of each optimizer, so that
    two that step once a batch make two, transformers counts a round of all as one."""
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


def freeze(
    model: nn.Module,
    optimizer: OptimizerLike | Sequence[OptimizerLike] | None,
    region: Region | str | Path,
    *,
    check_base: bool = True,
    clamp: float | None = None,
    base: str | Path | Mapping[str, Tensor] | None = None,
    audit_every: int = 100,
    replicated: bool | None = None,
) -> "Freeze":
    """Hold the entries of ``region`` bit for bit while ``optimizer`` trains the rest of ``model``.

    Training goes on as if the frozen entries were constants: their gradients are zero before
    reduction, clipping and the optimizer see them, and each step leaves their values as they
    were. The engine is found out: one device, DDP, FSDP2 (``fully_shard``) and DeepSpeed ZeRO
    stage 1 to 3, with the optimizer offloaded to the CPU or not. Call it on every rank, after the
    engine has the model: with the DistributedDataParallel module, the sharded one or the
    DeepSpeed engine. Accumulation, mixed precision with or without loss scaling, closures,
    gradient checkpointing, torch.compile and tied weights need nothing more::

        handle = freezetrain.freeze(model, optimizer, region)
        ...  # the training loop, unchanged
        handle.verify()

    Verify before a checkpoint is written, above all after an exception: a step that raised leaves
    weights moved, which the next step or :meth:`Freeze.verify` puts back. Copies of the model
    (``deepcopy``) are not frozen.

    In a model that bears PEFT's adapters a region of the base is found where they have put its
    weights, also those that ``modules_to_save`` trains. Merging an adapter moves what it adds to,
    which the description then says.

    *Bit for bit* is about the values that the optimizer steps, in its own dtype, and about the
    weights that the forward pass uses. DeepSpeed in 16 bits steps fp32 masters that it makes from
    weights rounded to 16 bits: for a base stored in fp32 the rounded ones are frozen, unless
    ``base`` gives the masters the stored values.

    What an optimizer derives from a whole tensor still includes frozen entries: Adafactor and
    Muon see zeros there among the gradients (row and column means divide by all entries), and
    Adafactor's RMS of the parameter sees their values. Weight decay of the L2 kind (SGD, Adam)
    enters the optimizer's state at frozen entries, without effect on any weight.

    Args:
        model: the model, or a wrapper around it (DDP, torch.compile, LightningModule, engine).
        optimizer: the one that trains the model, or all of them where there are several, as
            ``[muon, adamw]``: each is guarded for the parameters of the region that it holds, and
            one handle speaks for all. A trainer's wrapper will do, as will a container that keeps
            several as ``.optimizers``. What is used of each:
            :class:`~freezetrain.freezing.optimizers.HookedOptimizer`. None for a DeepSpeed engine,
            which has one.
        region: what to freeze, or its file; its names are looked up as in :meth:`Region.resolve`.
        check_base: refuse a model that is not the base named in the region. False for a model
            that has been trained since, as on resuming.
        clamp: set the frozen entries to this value first.
        base: folder of the base's weights, or parameter name -> tensor: start the masters' frozen
            entries from these stored values rather than from the weights that they were rounded
            to.
        audit_every: steps between two audits, see :class:`~freezetrain.freezing.audit.Audit`;
            the first two steps are always audited. 0: only :meth:`Freeze.verify` looks.
        replicated: whether the processes of the default group train copies of ``model``
            together, so that they are to be compared; None: found out from DDP or an engine.

    Raises:
        UserError: names or shapes of the region that the model lacks; another base; an engine or
            an optimizer under which the freeze cannot be guaranteed.
        CheckError: the ranks, or the masters and the weights, disagree from the start.
    """
    FreezeOptions(clamp=clamp, base=base, audit_every=audit_every)  # refuses what cannot work
    region = region if isinstance(region, Region) else Region.load(region)
    refuse_unsupported(model)
    reshard(model)
    resolved = region.resolve(model)
    layout = lay_out(model, optimizer, resolved, replicated).on_device()
    if len(set(layout.gather(region.digest))) > 1:
        raise UserError("the ranks were given different regions: load one file on all of them")
    with layout.together():
        if check_base:
            region.check_base(model, layout.full)
    prove(layout, resolved, exact=check_base)  # it leaves ZeRO-3 no whole copy to go stale
    with layout.together():
        if clamp is not None:
            set_all(layout, clamp)
        elif base is not None:
            take_stored(layout, WeightsFolder.plain(base) if isinstance(base, str | Path) else base)
    handle = Freeze(model, region, resolved, layout, audit_every)
    if layout.first_rank:
        rounded = layout.rounds and base is None and clamp is None
        warns = rounded or "; adapters add to" in handle.description
        _log.log(logging.WARNING if warns else logging.INFO, handle.description)
    return handle


class Freeze:
    """A region being frozen; made by :func:`freeze`.

    As a context manager it verifies on leaving without an exception, and always removes.
    """

    def __init__(
        self,
        model: nn.Module,
        region: Region,
        resolved: Sequence[Resolved],
        layout: Layout,
        audit_every: int,
    ) -> None:
        self.region = region
        self.engine = layout.engine
        self.count = sum(frozen.entries.count for frozen in resolved)
        self.description = f"{self.count:,} entries frozen under {layout.describe()}"
        """What is frozen and, by the dtypes, what *bit for bit* is about."""
        adapted = adapted_parameters(model)
        under = sum(id(frozen.parameter) in adapted for frozen in resolved)
        if under:
            self.description += (
                f"; adapters add to {under} of its {len(resolved)} parameters: merging them into "
                "the model would move frozen entries, so keep them apart"
            )
        self.shards = layout.masters
        """The frozen entries of what this rank's optimizer steps."""
        self._model = model
        self._parameters = [(frozen.name, frozen.parameter) for frozen in resolved]
        self._mask = GradientMask(layout.gradients)
        self._guard = StepGuard(layout.optimizers, layout.inner, layout.masters, layout.piecewise)
        try:
            self._audit = Audit(layout, self._mask, self._guard, audit_every, self._replaced)
        except BaseException:
            self._mask.remove()
            self._guard.remove()
            raise
        self._copies = Copies(model, region, resolved, layout)
        self._removed = False

    @property
    def digest(self) -> str:
        """Digest of the values that the frozen entries started with, 16 hexadecimal digits.

        It does not depend on the engine, the number of ranks or the dtype that holds the values.
        """
        return self._audit.digest

    @property
    def seconds(self) -> float:
        """Time that this host has spent on masks, guard and audits since the freeze.

        What it only queues on a GPU is not waited for; audits do wait, and for the other ranks.
        """
        return self._mask.seconds + self._guard.seconds + self._audit.seconds

    def put_into(self, copy: nn.Module) -> None:
        """Give ``copy``, such as an average of the weights, the frozen entries as they are.

        Averages round: without this they move entries that never moved. Call it on every rank,
        after each update of the average or once before it is used::

            averaged.update_parameters(model)  # torch.optim.swa_utils.AveragedModel
            handle.put_into(averaged)

        UserError for a copy without the region's parameters, one whose dtype would round them, and
        under DeepSpeed.
        """
        if self._removed:
            raise UserError("the freeze was removed: copy its entries before remove()")
        self._copies.put_into(copy)

    def verify(self, copy: nn.Module | Mapping[str, Tensor] | None = None) -> int:
        """Check that every frozen entry has the bits that it had at the start; return how many.

        ``copy`` is looked at too: a copy of the model, such as an average of its weights, or a
        state dict with the model's own names, which need not hold all of them.

        Call it on every rank. CheckError on all of them, naming parameter, entry, rank and step,
        when an entry of one moved or a parameter was replaced by another tensor; UserError when
        the model has since come under an engine that cannot be guaranteed, or after
        :meth:`remove`.
        """
        if self._removed:
            raise UserError("the freeze was removed: verify before remove()")
        self._guard.put_back()
        self._audit.values()
        if copy is not None:
            self._copies.refuse_unknown()
            state = self._copies.state_of(copy) if isinstance(copy, nn.Module) else copy
            self._copies.refuse_none(state)
            self._audit.copy(self._copies, state, "the copy of the model")
        return self.count

    def verify_checkpoint(self, state: Mapping[str, Tensor]) -> None:
        """As :meth:`verify`, of a state dict that is about to be written.

        One that the engine makes of masters of its own, as DeepSpeed does, is not looked at: it is
        not what will be written.
        """
        if self._copies.known and not self._removed:
            self._audit.copy(self._copies, state, "the checkpoint that is about to be written")

    def counts_from(self, step: int) -> None:
        """Have messages count on from ``step``, the steps that the run has made by now."""
        self._audit.counts_from(step)

    def _replaced(self) -> list[str]:
        refuse_unsupported(self._model)
        reshard(self._model)
        now = {id(parameter) for parameter in self._model.parameters()}
        return [name for name, parameter in self._parameters if id(parameter) not in now]

    def remove(self) -> None:
        """Let the region train again. May be called twice."""
        self._removed = True
        self._mask.remove()
        self._guard.remove()
        self._audit.remove()

    def __enter__(self) -> "Freeze":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.verify()
        finally:
            self.remove()


@torch.no_grad()
def set_all(layout: Layout, value: float) -> None:
    """Set every frozen entry to ``value``, in the masters and in the weights of the forward pass.

    The paper's second variant, with 0. UserError unless ``value`` is finite in their dtypes.
    """
    for dtype in {shard.owner.dtype for shard in (*layout.masters, *layout.copies)}:
        if not torch.tensor(value, dtype=torch.float64).to(dtype).isfinite():
            raise UserError(f"set_all must be a finite number in {dtype}, got {value}")
    for shard in (*layout.masters, *layout.copies):
        shard.entries.fill(shard.of(shard.owner), value)


@torch.no_grad()
def take_stored(layout: Layout, stored: Mapping[str, Tensor]) -> None:
    """Give the masters the values that the base is stored with, which the engine has rounded.

    An engine that trains in 16 bits may make its fp32 masters from weights that it has rounded
    before. ``stored``: the region's name of a parameter -> tensor. UserError if it lacks one, has
    another shape, or is not what the model's weights were rounded from.
    """
    dtypes = {copy.number: copy.owner.dtype for copy in layout.copies}
    for shard in layout.masters:  # all of them before the first is written
        values, here = _stored_values(shard, stored), shard.of(shard.owner)
        rounded = values.to(dtypes.get(shard.number, here.dtype))
        if not torch.equal(rounded.to(here.dtype).cpu(), shard.read().cpu()):
            raise UserError(
                f"the weights of {shard.name} at its frozen entries are not those of the base "
                "rounded to the model's dtype: pass the base that the model was loaded from"
            )
    for shard in layout.masters:
        shard.write(_stored_values(shard, stored))


def _stored_values(shard: Shard, stored: Mapping[str, Tensor]) -> Tensor:
    """The stored values at the shard's entries: [count]."""
    return shard.entries.to("cpu").read(stored_part(shard, stored, "base"))
