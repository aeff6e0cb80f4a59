"""A region: a set of individual weights of one model."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from freezetrain.errors import UserError, near_misses
from freezetrain.regions.base import Base, common_base, fingerprint
from freezetrain.regions.entries import Entries, draw_indices
from freezetrain.regions.file import digest_of, read_region_file, write_region_file
from freezetrain.regions.parameters import (
    Resolved,
    all_parameters,
    errors_begin_with,
    find_submodule,
    full_shape,
    layer_of,
    match_parameters,
    resolve,
)
from freezetrain.regions.storage import MAX_SHARD_BYTES


@dataclass(frozen=True)
class Coverage:
    """Fractions between 0 and 1 of the entries that are in the region."""

    tensors: dict[str, float]
    """Parameter name -> fraction."""
    layers: dict[int, float]
    """Layer, the first integer in a parameter's dotted name -> fraction over its parameters."""
    model: float
    """Fraction over all parameters."""


class Region(Mapping[str, Entries]):
    """Parameter name -> :class:`Entries`, immutable, on the CPU.

    ``base`` says which model it belongs to, ``made`` (JSON-able) how it was made. Neither takes
    part in ``==`` or ``digest``, nor does a parameter without entries. ``| & - ^`` are those of
    sets; operands must not name different bases (UserError).
    """

    def __init__(
        self,
        entries: Mapping[str, Entries],
        base: Base | None = None,
        made: Mapping[str, Any] | None = None,
    ) -> None:
        self._entries = {name: entries[name].to("cpu") for name in sorted(entries)}
        self.base = base
        try:
            self.made: dict[str, Any] = json.loads(json.dumps(dict(made or {})))
        except (TypeError, ValueError) as error:
            raise UserError(f"a region's 'made' must be JSON-able: {error}") from error

    @classmethod
    def from_masks(
        cls,
        masks: Mapping[str, Tensor],
        base: Base | None = None,
        made: Mapping[str, Any] | None = None,
    ) -> "Region":
        """The entries where the bool tensors, each of its parameter's shape, are True."""
        entries = {}
        for name, mask in masks.items():
            with errors_begin_with(name):
                entries[name] = Entries.from_mask(mask)
        return cls(entries, base, made)

    @classmethod
    def random(
        cls,
        model: nn.Module,
        ratio: float,
        *,
        seed: int,
        parameters: Sequence[str] | None = None,
        base: Base | None = None,
    ) -> "Region":
        """``ratio`` (0 to 1) of each parameter's entries, rounded half up, uniformly at random.

        ``parameters``: names or glob patterns; None = all. The draw for a parameter depends on
        ``seed``, its name and its size alone, and is the same on every machine. UserError for a
        pattern that matches nothing.
        """
        if not 0 <= ratio <= 1:
            raise UserError(f"ratio must lie in 0 to 1, got {ratio}")
        entries = {}
        for name, parameter in match_parameters(model, parameters).items():
            whole = Entries.whole(full_shape(parameter))
            drawn = draw_indices(whole.numel, int(ratio * whole.numel + 0.5), seed, name)
            entries[name] = Entries.from_indices(whole.shape, drawn)
        return cls(entries, base, {"operation": "random", "ratio": ratio, "seed": seed})

    @classmethod
    def rows(
        cls,
        model: nn.Module,
        rows: Mapping[str, Tensor | Sequence[int]],
        base: Base | None = None,
    ) -> "Region":
        """Whole rows (slices of dimension 0): parameter name -> row indices."""
        return cls._slices(model, rows, "rows", Entries.from_rows, base)

    @classmethod
    def columns(
        cls,
        model: nn.Module,
        columns: Mapping[str, Tensor | Sequence[int]],
        base: Base | None = None,
    ) -> "Region":
        """Whole columns (slices of the last dimension): parameter name -> column indices."""
        return cls._slices(model, columns, "columns", Entries.from_columns, base)

    @classmethod
    def _slices(
        cls,
        model: nn.Module,
        slices: Mapping[str, Tensor | Sequence[int]],
        operation: str,
        build: Callable[..., Entries],
        base: Base | None,
    ) -> "Region":
        known = all_parameters(model)
        entries = {}
        for name, index in slices.items():
            if name not in known:
                raise UserError(f"the model has no parameter {name!r}{near_misses(name, known)}")
            with errors_begin_with(name):
                entries[name] = build(full_shape(known[name]), index)
        return cls(entries, base, {"operation": operation})

    @classmethod
    def tensors(
        cls, model: nn.Module, patterns: Sequence[str], base: Base | None = None
    ) -> "Region":
        """Whole parameters, by names or glob patterns (UserError if one matches nothing)."""
        matched = match_parameters(model, patterns)
        entries = {name: Entries.whole(full_shape(value)) for name, value in matched.items()}
        return cls(entries, base, {"operation": "tensors", "patterns": list(patterns)})

    @classmethod
    def load(cls, path: str | Path, model: nn.Module | None = None) -> "Region":
        """Read and check a region file; given ``model``, also that it is the region's base.

        UserError, naming the first offender: nothing there, a file that is damaged, of another
        kind or another version (see :func:`~freezetrain.regions.file.read_region_file`); names or
        shapes that ``model`` lacks; another base than ``model``.
        """
        region = cls(*read_region_file(path))
        if model is not None:
            region.resolve(model)
            region.check_base(model)
        return region

    def save(
        self,
        path: str | Path,
        overwrite: bool = False,
        *,
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> Path:
        """Write a region file, a folder of shards above ``max_shard_bytes``; return ``path``.

        Whole or not at all. UserError where ``path`` exists and ``overwrite`` is false, or cannot
        be written.
        """
        return write_region_file(
            path,
            self,
            self.base,
            self.made,
            overwrite=overwrite,
            max_shard_bytes=max_shard_bytes,
        )

    def random_like(self, seed: int) -> "Region":
        """As many entries of each parameter, at random as in :meth:`random`."""
        entries = {}
        for name, own in self.items():
            drawn = draw_indices(own.numel, own.count, seed, name)
            entries[name] = Entries.from_indices(own.shape, drawn)
        made = {"operation": "random_like", "seed": seed, "like": self._provenance()}
        return Region(entries, self.base, made)

    @property
    def names(self) -> list[str]:
        """Names of the parameters, sorted."""
        return list(self._entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape."""
        return {name: entries.shape for name, entries in self.items()}

    @property
    def count(self) -> int:
        """Entries in the region."""
        return sum(entries.count for entries in self.values())

    @property
    def numel(self) -> int:
        """Entries of all the region's parameters, in the region or not."""
        return sum(entries.numel for entries in self.values())

    @property
    def nbytes(self) -> int:
        """Bytes that the region takes in memory."""
        return sum(entries.nbytes for entries in self.values())

    def masks(self) -> dict[str, Tensor]:
        """Parameter name -> dense bool tensor of its shape."""
        return {name: entries.mask() for name, entries in self.items()}

    def indices(self, name: str) -> Tensor:
        """Sorted int64 indices [count] into the flattened parameter (UserError if unknown)."""
        if name not in self:
            raise UserError(f"the region has no parameter {name!r}" + near_misses(name, self))
        return self[name].indices()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the set: one set, one digest, whoever made it and however it is stored."""
        return digest_of(self)

    def jaccard(self, other: "Region") -> float:
        """Entries in both over entries in either, 0 to 1; two empty regions: 1.

        By their places, whichever the bases: of models of equal shape too (UserError otherwise).
        """
        both = 0
        for name in self.keys() & other.keys():
            with errors_begin_with(name):
                both += (self[name] & other[name]).count
        either = self.count + other.count - both
        return both / either if either else 1.0

    def coverage(self, model: nn.Module | None = None) -> Coverage:
        """Which fraction of each tensor, each layer and the whole is in the region.

        Of the region's own parameters or, given ``model``, of all of the model's.
        """
        if model is None:
            counts = {name: entries.count for name, entries in self.items()}
            return coverage(counts, {name: entries.numel for name, entries in self.items()})
        model = find_submodule(self, model)
        parameters = match_parameters(model)
        names = {id(parameter): name for name, parameter in parameters.items()}
        counts = {names[id(item.parameter)]: item.entries.count for item in self.resolve(model)}
        return coverage(counts, {name: values.numel() for name, values in parameters.items()})

    def resolve(self, model: nn.Module) -> list[Resolved]:
        """The parameters that the region means in ``model``, see :func:`.parameters.resolve`."""
        return resolve(self, model)

    def check_base(
        self, model: nn.Module, full: Callable[[nn.Parameter], Tensor] | None = None
    ) -> None:
        """UserError when ``model`` is not the base that the region was made for, if known.

        ``full`` gives the whole of a parameter that an engine has split over ranks.
        """
        if self.base is None:
            return
        if fingerprint(find_submodule(self, model), full) != self.base.fingerprint:
            raise UserError(
                f"the region was made for another model, {self.base.name or 'unnamed'} with the "
                f"fingerprint {self.base.fingerprint[:12]}, or the model has been trained since: "
                "pass that one, in its own dtype, or give check_base=False"
            )

    def __getitem__(self, name: str) -> Entries:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Region) else NotImplemented

    def __repr__(self) -> str:
        return f"Region({self.count} of {self.numel} entries in {len(self)} parameters)"

    def __or__(self, other: "Region") -> "Region":
        return self._combine(other, "|", Entries.__or__)

    def __and__(self, other: "Region") -> "Region":
        return self._combine(other, "&", Entries.__and__)

    def __sub__(self, other: "Region") -> "Region":
        return self._combine(other, "-", Entries.__sub__)

    def __xor__(self, other: "Region") -> "Region":
        return self._combine(other, "^", Entries.__xor__)

    def _combine(
        self, other: "Region", operation: str, combine: Callable[[Entries, Entries], Entries]
    ) -> "Region":
        if not isinstance(other, Region):
            return NotImplemented
        base = common_base(self.base, other.base)
        entries = {}
        for name in {**self, **other}:
            # A parameter that one side lacks has no entries there.
            left = self[name] if name in self else Entries.empty(other[name].shape)
            right = other[name] if name in other else Entries.empty(left.shape)
            with errors_begin_with(name):
                entries[name] = combine(left, right)
        made = {
            "operation": operation,
            "operands": [self._provenance(), other._provenance()],
        }
        return Region(entries, base, made)

    def _provenance(self) -> dict[str, Any]:
        return {"digest": self.digest, "made": self.made}


def coverage(counts: Mapping[str, int], numels: Mapping[str, int]) -> Coverage:
    """Coverage of ``counts`` entries in parameters of ``numels`` entries.

    A name that only ``numels`` has counts as no entries of that parameter.
    """
    layer_count: dict[int, int] = defaultdict(int)
    layer_numel: dict[int, int] = defaultdict(int)
    for name, numel in numels.items():
        layer = layer_of(name)
        if layer is not None:
            layer_count[layer] += counts.get(name, 0)
            layer_numel[layer] += numel
    return Coverage(
        {name: _ratio(counts.get(name, 0), numel) for name, numel in numels.items()},
        {layer: _ratio(layer_count[layer], layer_numel[layer]) for layer in sorted(layer_numel)},
        _ratio(sum(counts.values()), sum(numels.values())),
    )


def _ratio(count: int, numel: int) -> float:
    return count / numel if numel else 0.0
