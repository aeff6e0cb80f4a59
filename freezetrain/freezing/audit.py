"""The audit of a freeze: checks of frozen entries and gradients, every so many steps."""

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from freezetrain.errors import CheckError
from freezetrain.freezing.copies import Copies
from freezetrain.freezing.hooks import GradientMask, StepGuard, in_step, not_traced
from freezetrain.freezing.layout import Layout, Shard, as_hex, combined
from freezetrain.freezing.optimizers import own_master


class _Report(NamedTuple):
    """What one rank reports to the others."""

    problem: str | None
    masters: int | None
    """Digest of the masters that it holds; None where they were not looked at."""
    fired: set[int]
    suspects: dict[int, str]
    """Number -> name of parameters that have a gradient which this rank's mask never saw."""


class Audit:
    """Compares the frozen entries with those at the start, and looks at their gradients.

    Before the first two steps and then before one in ``every``: the masters and the weights that
    the forward pass uses have the digests that they had at the start, on each rank and added up
    over all; their gradients are zero; each parameter that has a gradient has had one masked; and
    the optimizer keeps no masters of its own. All ranks hear of what one finds and raise the same
    CheckError, which names parameter, entry, rank and step.

    To name entries, the values of the start are kept on the CPU: those that this rank's
    optimizer holds. With ``every`` = 0 nothing is kept nor checked until :meth:`values`, which
    then names parameters only.
    """

    def __init__(
        self,
        layout: Layout,
        mask: GradientMask,
        guard: StepGuard,
        every: int,
        replaced: Callable[[], list[str]],
    ) -> None:
        """``replaced``: names of parameters that are no longer the model's."""
        self._layout = layout
        self._mask = mask
        self._guard = guard
        self._every = every
        self._replaced = replaced
        self._entered = 0  # the guard's count at the last audit
        self._audited: set[int] = set()  # ids of the optimizers that it looked at since then
        self._step = 0  # the step last audited
        self._steps_before = 0  # those of the run that the guard has not counted
        self.seconds = 0.0
        """Spent on it by this host, with the waiting for other ranks and for the GPU."""
        self._masters = _digests(layout.masters)
        self._copies = _digests(layout.copies)
        self._values = [shard.read().cpu() for shard in layout.masters] if every else []
        ranks = layout.gather((layout.replica, self._by_parameter()))
        self._replicas = [replica for replica, _ in ranks]
        totals = self._totals([combined(digests) for _, digests in ranks])
        if len(totals) > 1:
            raise CheckError(
                f"the ranks start with different frozen values under {layout.engine}: load the "
                "same weights on all of them before the freeze"
            )
        (self._total,) = totals
        first = [digests for replica, digests in ranks if replica == self._replicas[0]]
        self._of_parameters = [combined(list(parts)) for parts in zip(*first, strict=True)]
        self._handles = [
            optimizer.register_step_pre_hook(not_traced(self._before_step))
            for optimizer in layout.inner
            if every
        ]

    def _by_parameter(self) -> list[int]:
        """Digests of what this rank holds of each of the region's parameters, in their order."""
        held: list[list[int]] = [[] for _ in self._layout.gradients]
        for shard, digest in zip(self._layout.masters, self._masters, strict=True):
            held[shard.number].append(digest)
        return [combined(digests) for digests in held]

    @property
    def digest(self) -> str:
        """Digest of all frozen values at the start, the same for any number of ranks: 16 digits."""
        return as_hex(self._total)

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Step pre-hook of the optimizers that hold the tensors. Runs after the guard's."""
        step, entered = self._guard.step, self._guard.entered
        due = step <= 2 or (step - 1) % self._every == 0
        if entered != self._entered:
            self._entered, self._audited = entered, set()
        if not due or id(optimizer) in self._audited:
            return None
        self._audited.add(id(optimizer))
        problem, masters = None, None
        if step != self._step:  # the first of the optimizer steps that make up a training step
            self._step = step
            problem, masters = self._moved()
        shards = in_step(optimizer, self._layout.masters)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._judge(problem, masters, shards)
            return None

        def checked() -> Any:
            """Gradients exist once the closure has run."""
            loss = closure()
            self._judge(problem, masters, shards)
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": checked}
        return (args[0], checked, *args[2:]), kwargs

    def values(self) -> None:
        """CheckError on all ranks if a frozen entry of one moved. Call it on every rank."""
        self._judge(*self._moved(), [])

    def copy(self, copies: Copies, state: Mapping[str, Tensor], what: str) -> None:
        """CheckError on all ranks if ``state``, of a copy called ``what``, has other values."""
        start = perf_counter()
        moved = copies.first_moved(state, self._of_parameters, self._masters)
        for rank, problem in enumerate(self._layout.gather(moved)):
            if problem is not None:
                raise CheckError(f"{self._where(rank)}step {self._now()}: {what} {problem}")
        self.seconds += perf_counter() - start

    def _where(self, rank: int) -> str:
        return f"rank {self._layout.rank_of(rank)}, " if self._layout.distributed else ""

    def _judge(self, problem: str | None, masters: int | None, shards: Sequence[Shard]) -> None:
        """Raise the first problem of any rank, on all."""
        start = perf_counter()
        problem = problem or self._unmasked(shards)
        suspects = {} if problem else self._never_masked(shards)
        reports = self._layout.gather(_Report(problem, masters, self._mask.fired, suspects))
        fired = set().union(*(report.fired for report in reports))
        for rank, report in enumerate(reports):
            problem = report.problem
            for number, name in report.suspects.items():
                if number not in fired:
                    problem = problem or (
                        f"{name} has a gradient whose frozen entries were never masked: freeze "
                        "after the last change of the model's parameters or hooks"
                    )
            if problem is not None:
                self._guard.put_back()  # the step that this stops has no post-hook
                raise CheckError(f"{self._where(rank)}step {self._now()}: {problem}")
        held = [report.masters for report in reports if report.masters is not None]
        if masters is not None and self._totals(held) != {self._total}:
            self._guard.put_back()
            raise CheckError(f"step {self._now()}: the ranks no longer hold the same frozen values")
        self.seconds += perf_counter() - start

    def counts_from(self, step: int) -> None:
        """Have messages count on from ``step``, the steps that the run has made by now."""
        self._steps_before = step - self._guard.step

    def _now(self) -> int:
        return self._steps_before + self._guard.step

    def _totals(self, masters: Sequence[int]) -> set[int]:
        """What the digests of the ranks add up to, in each replica: one value if all is well."""
        parts: dict[int, list[int]] = {}
        for replica, digest in zip(self._replicas, masters, strict=True):
            parts.setdefault(replica, []).append(digest)
        return {combined(digests) for digests in parts.values()}

    def _moved(self) -> tuple[str | None, int]:
        """What changed since the start, as a sentence; and the digest of the masters now."""
        start = perf_counter()
        masters, copies = _digests(self._layout.masters), _digests(self._layout.copies)
        problem = self._first_moved(masters, copies)
        self.seconds += perf_counter() - start
        return problem, combined(masters)

    def _first_moved(self, masters: list[int], copies: list[int]) -> str | None:
        gone = self._replaced()
        if gone:
            return f"{gone[0]} was replaced by another tensor since the freeze"
        for optimizer in self._layout.inner:
            for shard in self._layout.masters:
                key = own_master(shard.owner, optimizer.state.get(shard.owner, {}))
                if key is not None:
                    return (
                        f"{type(optimizer).__name__} keeps a copy of {shard.name} of its own, in "
                        f"higher precision, as state {key!r}, where a freeze cannot hold it: use "
                        "fp32 weights under autocast, or an engine that keeps fp32 masters"
                    )
        for place, (shard, digest) in enumerate(zip(self._layout.masters, masters, strict=True)):
            if digest != self._masters[place]:
                return self._sentence(shard, shard, place)
        for number, (copy, digest) in enumerate(zip(self._layout.copies, copies, strict=True)):
            if digest != self._copies[number]:
                for place, master in enumerate(self._layout.masters):
                    if master.number == copy.number:
                        return self._sentence(copy, master, place)
                return self._sentence(copy, copy, -1)
        return None

    def _sentence(self, held: Shard, master: Shard, place: int) -> str:
        """Name the first entry of ``held`` that has not the kept value of ``master``."""
        what = "" if held is master else f"the {held.of(held.owner).dtype} copy of "
        if self._values and place >= 0:
            kept = self._values[place]
            start = master.before - held.before
            now = held.read()[start : start + len(kept)].cpu()
            differs = kept.to(now.dtype).double().view(torch.int64) != now.double().view(
                torch.int64
            )
            if differs.any():
                first = int(differs.nonzero()[0])
                return (
                    f"{what}{held.name}[{master.index_of(first)}] is frozen and changed from "
                    f"{kept[first].item()} to {now[first].item()}; {int(differs.sum())} of its "
                    "frozen entries here did: something besides the guarded optimizer wrote "
                    "them, such as an average of weights, or another checkpoint was loaded"
                )
        return (
            f"frozen entries of {what}{held.name} changed since the freeze: something besides "
            "the guarded optimizer wrote them, or changed its dtype"
        )

    def _unmasked(self, shards: Sequence[Shard]) -> str | None:
        """The first gradient that is not zero at a frozen entry, as a sentence."""
        gradients = [
            (shard, shard.entries.read(shard.gradient()))
            for shard in shards
            if shard.owner.grad is not None
        ]
        counts = _on_cpu([values.count_nonzero() for _, values in gradients])
        for (shard, values), count in zip(gradients, counts, strict=True):
            # Clipping by a norm that is NaN makes all of a gradient NaN. A fused optimizer that
            # unscales enters such a step to skip it.
            if count and not shard.gradient().isnan().all():
                first = int(values.nonzero()[0])
                return (
                    f"the gradient of {shard.name}[{shard.index_of(first)}] is "
                    f"{values[first].item()}, not zero as at all frozen entries: it did not come "
                    "from backward(), or was changed after it; freeze when there are no gradients "
                    "yet (zero_grad), and leave them to backward()"
                )
        return None

    def _never_masked(self, shards: Sequence[Shard]) -> dict[int, str]:
        unseen = [
            shard
            for shard in shards
            if shard.number not in self._mask.fired and shard.owner.grad is not None
        ]
        counts = _on_cpu([shard.gradient().count_nonzero() for shard in unseen])
        return {s.number: s.name for s, count in zip(unseen, counts, strict=True) if count}

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _digests(shards: Sequence[Shard]) -> list[int]:
    return _on_cpu([shard.digest() for shard in shards])


def _on_cpu(scalars: list[Tensor]) -> list[int]:
    """Integers from any devices, with one synchronization for each."""
    by_device: dict[torch.device, list[int]] = {}
    for number, scalar in enumerate(scalars):
        by_device.setdefault(scalar.device, []).append(number)
    result = [0] * len(scalars)
    for numbers in by_device.values():
        values = torch.stack([scalars[number] for number in numbers]).tolist()
        for number, value in zip(numbers, values, strict=True):
            result[number] = value
    return result
