"""Soft holding: after each optimizer step every weight goes a share of its way back to the base."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from freezetrain.errors import CheckError, UserError
from freezetrain.escaping import visible
from freezetrain.forward import reshard
from freezetrain.freezing.engines import lay_out, refuse_unsupported
from freezetrain.freezing.hooks import RunningSteps, not_traced
from freezetrain.freezing.layout import Layout
from freezetrain.freezing.optimizers import own_master
from freezetrain.freezing.pulled_parts import Part, parts_of, trained_parameters
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.regions import Region

Regions = Mapping[str, float] | Sequence[tuple[Region | str | Path, float]]


@dataclass(eq=False, repr=False)
class PullOptions:
    """What the callbacks of all trainers are told of a pull.

    Raises UserError for values that cannot work.
    """

    strength: float
    """λ of all weights that no region names, see :func:`freezetrain.pull`."""
    base: str | Path | Mapping[str, Tensor]
    """Folder of the base's weights, or the base's name of a parameter -> tensor."""
    regions: Regions = ()
    """λ of the entries of regions."""
    importance: Mapping[str, Tensor] | None = None
    """The base's name of a parameter -> importance of its weights, such as Fisher scores."""
    on_cpu: bool = False
    """Keep the base's values in CPU memory."""
    log_every_n_steps: int = 100
    """Optimizer steps between two looks at the distance; each is a pass over all weights."""

    def __post_init__(self) -> None:
        if self.log_every_n_steps < 1:
            raise UserError(f"log_every_n_steps must be 1 or more, got {self.log_every_n_steps}")
        _pairs(self.strength, self.regions, self.importance)

    def begin(self, model: nn.Module, optimizer: Any, replicated: bool) -> "Pull":
        """As :func:`pull`."""
        return pull(
            model,
            optimizer,
            self.strength,
            regions=self.regions,
            base=self.base,
            importance=self.importance,
            on_cpu=self.on_cpu,
            replicated=replicated,
        )

    def is_due(self, step: int, last: int) -> bool:
        """Whether to look at the distance after ``step`` steps; ``last``: when that was done."""
        return step // self.log_every_n_steps > last // self.log_every_n_steps


def pull(
    model: nn.Module,
    optimizer: Any,
    strength: float,
    *,
    regions: Regions = (),
    base: str | Path | Mapping[str, Tensor] | None = None,
    importance: Mapping[str, Tensor] | None = None,
    on_cpu: bool = False,
    replicated: bool | None = None,
) -> "Pull":
    """Pull the weights that ``optimizer`` trains towards the base, after each of its steps.

    θ ← θ − min(1, η · λ) · (θ − θ₀), with η the learning rate of the weight's parameter group at
    that step, λ its strength and θ₀ the base. This is decoupled weight decay (Loshchilov and
    Hutter 2019, arXiv 1711.05101) towards the base instead of zero: it passes through neither
    clipping nor the optimizer's rescaling. A step that loss scaling skips does not pull; of steps
    within one another the outermost does. Entries that :func:`~freezetrain.freezing.freeze` holds
    stay as they are, whichever is called first.

    The values pulled are those that the optimizer steps: fp32 masters where an engine keeps some.
    Where the weights themselves are in 16 bits, a pull of less than half the distance to the next
    number is lost. It works on the engines that a freeze works on; call it on every rank, after
    the engine has the model. Memory: the base's values of what this rank's optimizer steps, in
    16 bits where those hold them exactly.

    Args:
        model: the model, or a wrapper around it, as for a freeze.
        optimizer: the one that trains it; None for a DeepSpeed engine, which has it.
        strength: λ of all weights that no region names; 0 leaves them alone. η · λ is the share
            of the way to the base that a step goes: with a learning rate of 1e-4 and a strength
            of 20 it is 0.2%.
        regions: λ of the entries of regions, as pairs of a region or its file and a strength, or
            a mapping from files. Of an entry in several the largest counts.
        base: folder of the base's weights, or the base's name of a parameter -> tensor. None: the
            weights as they are now, of a model that has not been trained.
        importance: the base's name of a parameter -> importance of its weights, of the same
            shape, such as Fisher scores: λ of a weight is ``strength`` times its importance,
            divided by the mean of all (decoupled EWC, after Kirkpatrick et al. 2017, arXiv
            1612.00796). Parameters that it lacks are not pulled.
        on_cpu: keep the base's values in (pinned) CPU memory.
        replicated: as for a freeze.

    Raises:
        UserError: a strength that is negative or not finite; regions and an importance at once; a
            base without one of the parameters or with another shape; no base for an optimizer
            that has stepped before; an optimizer without a learning rate, or with weights of its
            own in higher precision (found at its first step); an engine or an optimizer under
            which a freeze, and so a pull, cannot be guaranteed.
    """
    pairs = _pairs(strength, regions, importance)
    stored, missing = _opened(base)
    with in_words_of_a_pull():
        refuse_unsupported(model, masked=False)
        reshard(model)
        names = stored if importance is None else importance
        parameters = trained_parameters(model, optimizer, names)
        layout = lay_out(model, optimizer, parameters, replicated)
    with layout.together():
        if missing is not None:  # perhaps on this node alone
            raise missing
        _refuse_without_rate(layout.inner)
        if stored is None:
            _refuse_trained(layout.inner)
        parts = parts_of(layout, model, stored, pairs, importance, on_cpu)
    return Pull(layout, parts, strength)


class Pull:
    """Weights being pulled towards a base; made by :func:`pull`."""

    def __init__(self, layout: Layout, parts: Sequence[Part], strength: float) -> None:
        self.engine = layout.engine
        self.count = sum(part.base.numel() for part in parts)
        """Weights of this rank that are pulled, or may be."""
        self.seconds = 0.0
        """Spent on it by this host; a GPU does what was queued later."""
        self._layout = layout
        self._parts = parts
        self._strength = strength
        self._running = RunningSteps(layout.inner)
        self._stepped: list[Optimizer] = []  # since the outermost of the running steps began
        self._known: set[int] = set()  # ids of optimizers whose state has been looked at
        rates = [(optimizer, _rates(optimizer)) for optimizer in layout.inner]
        self._held = {
            id(optimizer): [part for part in parts if id(part.shard.owner) in held]
            for optimizer, held in rates
            if not layout.copies  # else the engine shows its optimizer one tensor after another
        }
        self._handles: dict[int, list[Any]] = {}
        for optimizer in layout.optimizers:
            self._handles[id(optimizer)] = [
                optimizer.register_step_pre_hook(not_traced(self._before)),
                optimizer.register_step_post_hook(not_traced(self._after)),
            ]

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        if self._running.begin(optimizer):
            self._stepped = []
        # Before the guard of a freeze, which may be younger and puts back what is frozen, and
        # before hooks that copy the weights, as for an average.
        hooks: Any = optimizer._optimizer_step_post_hooks
        hooks.move_to_end(self._handles[id(optimizer)][1].id, last=False)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        inner = any(optimizer is other for other in self._layout.inner)
        if inner and optimizer not in self._stepped and not _skipped(optimizer):
            self._stepped.append(optimizer)
        if optimizer not in self._running or not self._running.end(optimizer):
            return
        start = perf_counter()
        for stepped in self._stepped:
            self._pull(stepped, _rates(stepped))
        self.seconds += perf_counter() - start

    def _pull(self, optimizer: Optimizer, rates: Mapping[int, float]) -> None:
        for part in self._held.get(id(optimizer), ()):
            if id(part.shard.owner) not in rates:
                raise CheckError(
                    f"{part.shard.name} was replaced by another tensor in "
                    f"{type(optimizer).__name__} since the pull began: begin it after the last "
                    "change of the model's parameters and of the optimizer's groups"
                )
        parts = [part for part in self._parts if id(part.shard.owner) in rates]
        if id(optimizer) not in self._known:
            self._known.add(id(optimizer))
            _refuse_own_masters(optimizer, parts)
        for part in parts:
            if rate := rates[id(part.shard.owner)]:
                part.pull(rate, self._strength)

    @torch.no_grad()
    def distances(self) -> dict[str, float]:
        """‖θ − θ₀‖ / ‖θ₀‖ by kind of parameter, as ``model.layers.*.mlp.up_proj.weight``.

        A kind is the parameters whose names differ in numbers only. Call it on every rank.
        Infinite where the base is zero and the weights are not.
        """
        sums: dict[str, list[float]] = {}
        for part in self._parts:
            kind = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", part.shard.key)
            for place, value in enumerate(part.squares()):
                sums.setdefault(kind, [0.0, 0.0])[place] += value
        ranks = self._layout.gather((self._layout.replica, sums))
        total: dict[str, list[float]] = {}
        for replica, of_rank in ranks:
            if replica == ranks[0][0]:  # others hold the same
                for kind, values in of_rank.items():
                    here = total.setdefault(kind, [0.0, 0.0])
                    total[kind] = [here[0] + values[0], here[1] + values[1]]
        return {
            kind: (moved / size) ** 0.5 if size else (float("inf") if moved else 0.0)
            for kind, (moved, size) in sorted(total.items())
        }

    def scalars(self, distances: Mapping[str, float] | None = None) -> dict[str, float]:
        """:meth:`distances`, or those given, as trainers log them; finite ones.

        Under names that every logger takes: ``pull/model.layers.N.mlp.up_proj.weight``.
        """
        distances = self.distances() if distances is None else distances
        return {
            f"pull/{visible(kind).replace('*', 'N')}": value
            for kind, value in distances.items()
            if isfinite(value)
        }

    def remove(self) -> None:
        """Pull no more. May be called twice."""
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()

    def __enter__(self) -> "Pull":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer has entered its step to leave it out, as loss scaling says."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _rates(optimizer: Optimizer) -> dict[int, float]:
    """Id of each tensor that ``optimizer`` holds now -> its learning rate."""
    return {
        id(tensor): float(group["lr"])
        for group in optimizer.param_groups
        for tensor in group["params"]
    }


def _pairs(
    strength: float, regions: Regions, importance: Mapping[str, Tensor] | None
) -> list[tuple[Region | str | Path, float]]:
    """``regions`` as pairs; UserError for strengths that cannot be."""
    pairs = list(regions.items() if isinstance(regions, Mapping) else regions)
    for value in (strength, *(value for _, value in pairs)):
        if not (isfinite(value) and value >= 0):
            raise UserError(f"the strength of a pull must be a number, 0 or more, got {value}")
    if pairs and importance is not None:
        raise UserError("regions and importance both say which weights are pulled more: give one")
    return pairs


@contextmanager
def in_words_of_a_pull() -> Iterator[None]:
    """What neither can be guaranteed under says so of a freeze."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("cannot freeze", "cannot pull", 1)) from error


def _opened(
    base: str | Path | Mapping[str, Tensor] | None,
) -> tuple[Mapping[str, Tensor] | None, UserError | None]:
    """What the base is read from, or why it cannot be."""
    if not isinstance(base, str | Path):
        return base, None
    try:
        return WeightsFolder.plain(base), None
    except UserError as error:
        return None, error


def _refuse_without_rate(optimizers: Sequence[Optimizer]) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not isinstance(group.get("lr"), int | float | Tensor):
                raise UserError(
                    f"a pull goes by the learning rate, and {type(optimizer).__name__} has "
                    f"lr={group.get('lr')!r} in a group of its parameters: use an optimizer that "
                    "is given one"
                )


def _refuse_trained(optimizers: Sequence[Optimizer]) -> None:
    """UserError for optimizers that have stepped, or were resumed: what is pulled to is lost."""
    for optimizer in optimizers:
        for state in (*optimizer.state.values(), *optimizer.param_groups):
            count = state.get("step", 0)
            # SGD counts no steps: a momentum that is not zero is the sign of one.
            momentum = () if "step" in state or "params" in state else state.values()
            if float(count) > 0 or any(isinstance(m, Tensor) and m.any() for m in momentum):
                raise UserError(
                    f"{type(optimizer).__name__} has stepped before, so that the weights are no "
                    "longer the base's: give base= the folder of the base's weights"
                )


def _refuse_own_masters(optimizer: Optimizer, parts: Sequence[Part]) -> None:
    for part in parts:
        key = own_master(part.shard.owner, optimizer.state.get(part.shard.owner, {}))
        if key is not None:
            raise UserError(
                f"{type(optimizer).__name__} keeps a copy of {part.shard.name} of its own, in "
                f"higher precision, as state {key!r}, which a pull does not reach: use fp32 "
                "weights under autocast, or an engine that keeps fp32 masters"
            )
