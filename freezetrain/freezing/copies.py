"""Copies of a model that is frozen, as averages and state dicts: entries put in, and looked at."""

from collections.abc import Mapping, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from freezetrain.errors import UserError, near_misses
from freezetrain.freezing.layout import Layout, Shard, value_digest
from freezetrain.regions import Region, Resolved
from freezetrain.regions.parameters import plain_name


class Copies:
    """What a freeze does with copies of the model that its optimizers do not step.

    Where masters are not the weights of the forward pass (DeepSpeed in 16 bits) or lie elsewhere
    (its flat partitions), no copy is known to be laid out as they are: UserError.
    """

    def __init__(
        self, model: nn.Module, region: Region, resolved: Sequence[Resolved], layout: Layout
    ) -> None:
        self._region = region
        self._resolved = resolved
        self._layout = layout
        self._pairs: WeakKeyDictionary[nn.Module, list[tuple[Shard, nn.Parameter]]]
        self._pairs = WeakKeyDictionary()
        names: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(plain_name(name))
        # Also the region's own name, as in a state dict without what DDP puts before names.
        self._names = [{*names[id(frozen.parameter)], frozen.key} for frozen in resolved]

    @property
    def known(self) -> bool:
        """Whether what is said here is true of the engine."""
        return not self._layout.copies

    def refuse_unknown(self) -> None:
        """UserError where a copy cannot be followed."""
        if not self.known:
            raise UserError(
                f"under {self._layout.engine} a copy of the model cannot be held: DeepSpeed keeps "
                "masters of its own; average weights on one device, under DDP or FSDP2"
            )

    @torch.no_grad()
    def put_into(self, copy: nn.Module) -> None:
        """Set the frozen entries of ``copy`` to what is frozen; UserError if it cannot hold them.

        ``copy`` has the region's parameters under their names, itself or under one submodule.
        """
        self.refuse_unknown()
        pairs = self._pairs.get(copy)
        if pairs is None:
            pairs = self._pairs[copy] = self._paired(copy)
        for shard, parameter in pairs:
            values, here = shard.read(), shard.of(parameter)
            rounded = values.to(here.dtype)
            if here.dtype != values.dtype and not torch.equal(rounded.to(values.dtype), values):
                raise UserError(
                    f"the copy holds {shard.name} in {here.dtype}, which rounds what is frozen in "
                    f"{values.dtype}: keep the copy in {values.dtype}"
                )
            shard.entries.write(here, rounded.to(here.device))

    def _paired(self, copy: nn.Module) -> list[tuple[Shard, nn.Parameter]]:
        parameters = {frozen.key: frozen.parameter for frozen in self._region.resolve(copy)}
        pairs = []
        for shard in self._layout.masters:
            parameter = parameters.get(shard.key)
            if parameter is None or shard.of(parameter).shape != shard.of(shard.owner).shape:
                raise UserError(
                    f"the copy does not hold {shard.name} as the model does: make it of the model "
                    "that is frozen, after its weights were tied or sharded"
                )
            pairs.append((shard, parameter))
        return pairs

    def state_of(self, copy: nn.Module) -> dict[str, Tensor]:
        """Model's name of a parameter with frozen entries -> its counterpart in ``copy``."""
        parameters = {frozen.key: frozen.parameter for frozen in self._region.resolve(copy)}
        return {frozen.name: parameters[frozen.key] for frozen in self._resolved}

    def refuse_none(self, state: Mapping[str, Tensor]) -> None:
        """UserError unless ``state`` has a parameter with frozen entries."""
        known = {plain_name(name) for name in state}
        if self._resolved and not any(names & known for names in self._names):
            raise UserError(
                f"the state dict has no parameter with frozen entries, such as "
                f"{self._resolved[0].name!r}{near_misses(self._resolved[0].name, known)}: give one "
                "with the names that the model has"
            )

    @torch.no_grad()
    def first_moved(
        self, state: Mapping[str, Tensor], expected: Sequence[int], mine: Sequence[int]
    ) -> str | None:
        """The first parameter in ``state``, by its names in the model, that has other values.

        Args:
            state: names of parameters in the model -> tensors, whole or as this rank's DTensors.
                What it lacks, or has as an empty or meta tensor, is left out.
            expected: digests of the frozen values of whole parameters, in the region's order.
            mine: digests of this rank's masters.
        """
        state = {plain_name(name): value for name, value in state.items()}
        masters = {shard.number: place for place, shard in enumerate(self._layout.masters)}
        for number, names in enumerate(self._names):
            for name in sorted(names):
                value = state.get(name)
                if not isinstance(value, Tensor) or value.is_meta or not value.numel():
                    continue
                entries, before, digest = self._resolved[number].entries, 0, expected[number]
                if isinstance(value, DTensor):
                    shard = self._layout.masters[masters[number]]
                    entries, before = shard.entries, shard.before
                    digest, value = mine[masters[number]], value.to_local()
                if tuple(value.shape) != entries.shape:
                    return f"holds {name} in shape {list(value.shape)}, not {list(entries.shape)}"
                if int(value_digest(entries.read(value), number, before)) != digest:
                    return f"holds other values of {name} at its frozen entries than were frozen"
        return None
