"""The parts of parameters that a pull moves on this rank: their base, strengths, importance."""

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.freezing.layout import Layout, Shard
from freezetrain.freezing.optimizers import given, take_apart
from freezetrain.freezing.weights_folder import stored_part
from freezetrain.regions import Entries, Region, Resolved
from freezetrain.regions.entries import narrow
from freezetrain.regions.parameters import full_shape, plain_name

AT_ONCE = 1 << 22
"""Values that are pulled at a time, in fp32."""

_WRAPPERS = ("_forward_module.module.", "_forward_module.", "module.")  # before all names


@dataclass(frozen=True, eq=False)
class Part:
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
                _pull(now, base, share)
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
        # What a CPU's caches hold; a GPU is the faster, the more it has to do at a time.
        at_once = AT_ONCE // 4 if here.device.type == "cpu" else AT_ONCE
        rows = max(1, at_once // max(1, here.numel() // max(1, len(here))))
        for first in range(0, len(here), rows):
            where = slice(first, first + rows)
            importance = None if self.importance is None else self.importance[where]
            yield here[where], self.base[where], importance


def _pull(now: Tensor, base: Tensor, share: float | Tensor) -> None:
    """:func:`_between` in place, without a copy of ``now`` where that is in fp32 or wider."""
    if torch.promote_types(now.dtype, torch.float32) != now.dtype:
        now.copy_(_between(now, base, share))
        return
    now.lerp_(
        base.to(now.device, now.dtype), share.to(now.dtype) if isinstance(share, Tensor) else share
    )


def _between(now: Tensor, base: Tensor, share: float | Tensor) -> Tensor:
    """``now`` + share · (base − now) in fp32 or wider; exactly ``base`` for a share of 1."""
    wide = torch.promote_types(now.dtype, torch.float32)
    weight = share.to(wide) if isinstance(share, Tensor) else share
    return torch.lerp(now.to(wide), base.to(now.device, wide), weight)


def trained_parameters(
    model: nn.Module, optimizer: Any, names: Mapping[str, Tensor] | None
) -> list[Resolved]:
    """The floating-point parameters that are trained, with the names that the base has.

    Those of ``model`` that ``optimizer`` holds; all that need a gradient under DeepSpeed, whose
    optimizer holds others. What stands before those in the model, as ``module.``, is found by
    ``names``; without them it is what DistributedDataParallel, DeepSpeed and Fabric put there.
    UserError where nothing is trained.
    """
    trained = {
        plain_name(name): (name, parameter)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    }
    if not trained:
        raise UserError("there is nothing to pull: no parameter of the model needs a gradient")
    if names is None:
        wrappers = [w for w in _WRAPPERS if all(name.startswith(w) for name in trained)]
        prefix = wrappers[0] if wrappers else ""
    else:
        prefix = _prefix(trained, names)
    held = {
        id(tensor)
        for inner in take_apart(given(optimizer)).inner
        for group in inner.param_groups
        for tensor in group["params"]
    }
    if not any(id(parameter) in held for _, parameter in trained.values()):
        held = {id(parameter) for _, parameter in trained.values()}
    return [
        Resolved(name, plain.removeprefix(prefix), parameter, Entries.whole(full_shape(parameter)))
        for plain, (name, parameter) in trained.items()
        if id(parameter) in held
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


def parts_of(
    layout: Layout,
    model: nn.Module,
    stored: Mapping[str, Tensor] | None,
    strengths: Sequence[tuple[Region | str | Path, float]],
    importance: Mapping[str, Tensor] | None,
    on_cpu: bool,
) -> list[Part]:
    """One for each master of ``layout``, as :func:`~freezetrain.freezing.pull` says."""
    named = _strengths(model, strengths)
    mean = 1.0 if importance is None else _mean(importance)
    parts = []
    for shard in layout.masters:
        values = _base_values(shard, stored, on_cpu)
        weights = None if importance is None else _importance(shard, importance, mean)
        parts.append(Part(shard, values, _within(shard, named.get(shard.name, ())), weights))
    return parts


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
        if not (values.isfinite().all() and (values >= 0).all()):
            raise UserError(f"an importance must be a number, 0 or more, and that of {name} is not")
        total += values.sum(dtype=torch.float64).item()
        count += values.numel()
    if not total > 0:
        raise UserError("expected an importance with a mean above 0, got none; score more text")
    return total / count
