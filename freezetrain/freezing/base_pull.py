"""Soft holding: after each optimizer step every weight goes a share of its way back to the base."""

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from freezetrain.errors import UserError
from freezetrain.freezing.engines import lay_out, refuse_unsupported
from freezetrain.freezing.fsdp import reshard
from freezetrain.freezing.hooks import not_traced, steps_of_class
from freezetrain.freezing.layout import Layout, Shard
from freezetrain.freezing.weights_folder import WeightsFolder, stored_part
from freezetrain.regions import Entries, Region, Resolved
from freezetrain.regions.entries import narrow
from freezetrain.regions.parameters import full_shape, plain_name

_AT_ONCE = 1 << 22  # values in fp32 at a time

Regions = Mapping[str, float] | Sequence[tuple[Region | str | Path, float]]


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
    clipping nor the optimizer's rescaling. A step that loss scaling skips does not pull. Entries
    that :func:`~freezetrain.freezing.freeze` holds stay as they are, whichever is called first.

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
            that has stepped before; an engine or an optimizer under which a freeze, and so a
            pull, cannot be guaranteed.
    """
    pairs = list(regions.items() if isinstance(regions, Mapping) else regions)
    for value in (strength, *(value for _, value in pairs)):
        if not (isfinite(value) and value >= 0):
            raise UserError(f"the strength of a pull must be a number, 0 or more, got {value}")
    if pairs and importance is not None:
        raise UserError("regions and importance both say which weights are pulled more: give one")
    refuse_unsupported(model)
    reshard(model)
    stored = WeightsFolder.plain(base) if isinstance(base, str | Path) else base
    parameters = _trained(model, stored if importance is None else importance)
    layout = lay_out(model, optimizer, parameters, replicated)
    with layout.together():
        if stored is None:
            _refuse_trained(layout.inner)
        named = _strengths(model, pairs)
        mean = 1.0 if importance is None else _mean(importance)
        parts = []
        for shard in layout.masters:
            values = _base_values(shard, stored, on_cpu)
            weights = None if importance is None else _importance(shard, importance, mean)
            parts.append(_Part(shard, values, _within(shard, named.get(shard.name, ())), weights))
    return Pull(layout, parts, strength)


class Pull:
    """Weights being pulled towards a base; made by :func:`pull`."""

    def __init__(self, layout: Layout, parts: Sequence["_Part"], strength: float) -> None:
        self.engine = layout.engine
        self.count = sum(part.base.numel() for part in parts)
        """Weights of this rank that are pulled, or may be."""
        self.seconds = 0.0
        """Spent on it by this host; a GPU does what was queued later."""
        self._layout = layout
        self._parts = parts
        self._strength = strength
        self._running: dict[int, int] = {}  # id of an optimizer -> steps begun within one another
        self._handles: dict[int, list[Any]] = {}
        for optimizer in layout.inner:
            self._handles[id(optimizer)] = [
                optimizer.register_step_pre_hook(not_traced(self._before)),
                optimizer.register_step_post_hook(not_traced(self._after)),
            ]

    def _before(self, optimizer: Optimizer, *_: Any) -> None:
        running = self._running.get(id(optimizer), 0)
        if running >= steps_of_class(optimizer):
            running = 0  # those have raised
        self._running[id(optimizer)] = running + 1
        # Before the guard of a freeze, which may be younger and puts back what is frozen, and
        # before hooks that copy the weights, as for an average.
        hooks: Any = optimizer._optimizer_step_post_hooks
        hooks.move_to_end(self._handles[id(optimizer)][1].id, last=False)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        self._running[id(optimizer)] -= 1
        if self._running[id(optimizer)] or _skipped(optimizer):
            return
        start = perf_counter()
        rates = {
            id(parameter): float(group["lr"])
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for part in self._parts:
            if rate := rates.get(id(part.shard.owner), 0.0):
                part.pull(rate, self._strength)
        self.seconds += perf_counter() - start

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

    def remove(self) -> None:
        """Pull no more. May be called twice."""
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()

    def __enter__(self) -> "Pull":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


@dataclass(frozen=True, eq=False)
class _Part:
    """What this rank's optimizer steps of one parameter, and where it is pulled to."""

    shard: Shard
    base: Tensor
    """θ₀, of the shape of the part."""
    regions: Sequence[tuple[Entries, float]]
    """Entries of the part that have a strength of their own, weakest first."""
    importance: Tensor | None
    """Factor of the strength, of the shape of the part."""

    def pull(self, rate: float, strength: float) -> None:
        here = self.shard.of(self.shard.owner)
        if not here.numel():
            return
        taken = [
            (entries, entries.read(here), min(1.0, rate * own)) for entries, own in self.regions
        ]
        if strength:
            for now, base, importance in self._chunks(here):
                share: float | Tensor = min(1.0, rate * strength)
                if importance is not None:
                    share = (importance.to(now.device) * (rate * strength)).clamp_(max=1.0)
                now.copy_(_between(now, base, share))
        for entries, values, share in taken:
            base = entries.read(self.base).to(values.device)
            entries.write(here, _between(values, base, share).to(here.dtype))

    def squares(self) -> tuple[float, float]:
        """Σ (θ − θ₀)² and Σ θ₀²."""
        moved = size = 0.0
        for now, base, _ in self._chunks(self.shard.of(self.shard.owner)):
            base = base.to(now.device).double()
            moved += float((now.double() - base).square().sum())
            size += float(base.square().sum())
        return moved, size

    def _chunks(self, here: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Slices of the part, of the base and of the importance along dimension 0."""
        if here.ndim == 0:
            yield here, self.base, self.importance
            return
        rows = max(1, _AT_ONCE // max(1, here.numel() // max(1, len(here))))
        for first in range(0, len(here), rows):
            where = slice(first, first + rows)
            importance = None if self.importance is None else self.importance[where]
            yield here[where], self.base[where], importance


def _between(now: Tensor, base: Tensor, share: float | Tensor) -> Tensor:
    """``now`` + share · (base − now) in fp32 or wider; exactly ``base`` for a share of 1."""
    wide = torch.promote_types(now.dtype, torch.float32)
    weight = share.to(wide) if isinstance(share, Tensor) else share
    return torch.lerp(now.to(wide), base.to(now.device, wide), weight)


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer has entered its step to leave it out, as loss scaling says."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found)


def _trained(model: nn.Module, names: Mapping[str, Tensor] | None) -> list[Resolved]:
    """The trainable floating-point parameters of ``model``, with the names that the base has.

    What stands before those in the model, as ``module.``, is found by ``names``.
    """
    trained = {
        plain_name(name): (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    }
    prefix = "" if names is None else _prefix(trained, names)
    return [
        Resolved(name, plain.removeprefix(prefix), parameter, Entries.whole(full_shape(parameter)))
        for plain, (name, parameter) in trained.items()
    ]


def _prefix(trained: Iterable[str], names: Container[str]) -> str:
    """What stands before the base's ``names`` in the model: of most, and then the shortest."""
    votes: Counter[str] = Counter()
    for name in trained:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in names:
                votes["".join(f"{part}." for part in parts[:start])] += 1
    return max(votes, key=lambda prefix: (votes[prefix], -len(prefix)), default="")


def _refuse_trained(optimizers: Sequence[Optimizer]) -> None:
    """UserError for optimizers that have stepped, or were resumed: what is pulled to is lost."""
    for optimizer in optimizers:
        for state in optimizer.state.values():
            if any(float(value) > 0 for key, value in state.items() if key == "step"):
                raise UserError(
                    f"{type(optimizer).__name__} has stepped before, so that the weights are no "
                    "longer the base's: give base= the folder of the base's weights"
                )


def _strengths(
    model: nn.Module, pairs: Sequence[tuple[Region | str | Path, float]]
) -> dict[str, list[tuple[Resolved, float]]]:
    """Full name of a parameter -> the regions' entries in it, weakest first."""
    named: dict[str, list[tuple[Resolved, float]]] = {}
    for region, strength in sorted(pairs, key=lambda pair: pair[1]):
        loaded = region if isinstance(region, Region) else Region.load(region)
        for resolved in loaded.resolve(model):
            named.setdefault(resolved.name, []).append((resolved, strength))
    return named


def _within(shard: Shard, regions: Sequence[tuple[Resolved, float]]) -> list[tuple[Entries, float]]:
    """The regions' entries in the shard, beside its values."""
    device, shape = shard.of(shard.owner).device, shard.entries.shape
    within = []
    for resolved, strength in regions:
        entries = narrow(resolved.entries, shard.first, shard.entries.numel)
        if entries.count:
            if len(shape) != 1:
                entries = Entries.from_mask(entries.mask().view(shape))
            within.append((entries.for_training(device), strength))
    return within


def _base_values(shard: Shard, stored: Mapping[str, Tensor] | None, on_cpu: bool) -> Tensor:
    """θ₀ of the shard, in the fewest bytes that hold it exactly."""
    here = shard.of(shard.owner)
    values = here.detach() if stored is None else stored_part(shard, stored, "base")
    narrow_dtypes = (torch.bfloat16, torch.float16)
    dtype = next(
        (d for d in narrow_dtypes if torch.equal(values.to(d).to(values.dtype), values)),
        values.dtype,
    )
    device = torch.device("cpu") if on_cpu else here.device
    kept = values.to(device, dtype, copy=True)
    return kept.pin_memory() if on_cpu and here.device.type == "cuda" else kept


def _importance(shard: Shard, importance: Mapping[str, Tensor], mean: float) -> Tensor:
    """Factor of the strength at the shard; 0 where the importance lacks the parameter."""
    here = shard.of(shard.owner)
    if shard.key not in importance:
        return torch.zeros((), device=here.device).expand(here.shape)
    return stored_part(shard, importance, "importance").to(here.device, torch.float32) / mean


def _mean(importance: Mapping[str, Tensor]) -> float:
    total, count = 0.0, 0
    for name in importance:
        values = importance[name]
        total += values.sum(dtype=torch.float64).item()
        count += values.numel()
    if not total > 0:
        raise UserError("expected an importance with a mean above 0, got none; score more text")
    return total / count
