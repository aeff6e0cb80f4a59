"""Freezing a region in any training loop: one call, one handle."""

import hashlib
from dataclasses import replace
from types import TracebackType

import torch
from torch import nn
from torch.optim import Optimizer

from freezetrain.errors import CheckError
from freezetrain.freezing.engines import refuse_parameters, refuse_unsupported, torch_optimizers
from freezetrain.freezing.guard import StepGuard
from freezetrain.freezing.mask import GradientMask
from freezetrain.regions import Region, Resolved


def freeze(
    model: nn.Module, optimizer: Optimizer, region: Region, *, check_base: bool = True
) -> "Freeze":
    """Hold the entries of ``region`` bit for bit while ``optimizer`` trains the rest of ``model``.

    Training goes on as if the frozen entries were constants: their gradients are zero before
    reduction, clipping and the optimizer see them, and each step leaves their values as they
    were. Under DDP call it on every rank, with the DistributedDataParallel module, after the
    model is on its device; accumulation, AMP, closures, gradient checkpointing, torch.compile of
    the model and tied weights need nothing more::

        handle = freezetrain.freeze(model, optimizer, region)
        ...  # the training loop, unchanged
        handle.verify()

    What an optimizer derives from a whole tensor still includes frozen entries: Adafactor and
    Muon see zeros there among the gradients (row and column means divide by all entries), and
    Adafactor's RMS of the parameter sees their values. Weight decay of the L2 kind (SGD, Adam)
    enters the optimizer's state at frozen entries, without effect on any weight.

    Args:
        model: the model, or a wrapper around it (DDP, torch.compile, LightningModule).
        optimizer: the one that holds the region's parameters; call ``freeze`` once for each when
            two share a region's parameters between them, with a region for each.
        region: what to freeze; its names are looked up as in :meth:`Region.resolve`.
        check_base: refuse a model that is not the base named in the region. False for a model
            that has been trained since, as on resuming.

    Raises:
        UserError: names or shapes of the region that the model lacks; another base; a trainer or
            an optimizer under which the freeze cannot be guaranteed (sharded ones).
    """
    return Freeze(model, optimizer, region, check_base=check_base)


class Freeze:
    """A region being frozen; made by :func:`freeze`.

    As a context manager it verifies on leaving without an exception, and always removes.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, region: Region, *, check_base: bool = True
    ) -> None:
        refuse_unsupported(model)
        optimizers = torch_optimizers(optimizer)
        if check_base:
            region.check_base(model)
        resolved = region.resolve(model)
        refuse_parameters(optimizers[-1], resolved)
        self.region = region
        self._model = model
        # Indices live beside the weights, so that no step has to move them.
        self._resolved = [
            replace(frozen, entries=frozen.entries.to(frozen.parameter.device))
            for frozen in resolved
        ]
        self._digests = [_digest(frozen) for frozen in self._resolved]
        self._mask = GradientMask(self._resolved)
        self._guard = StepGuard(optimizers, self._resolved)
        self._check = optimizers[-1].register_step_pre_hook(
            torch.compiler.disable(self._mask.before_step)
        )

    @property
    def count(self) -> int:
        """Number of frozen entries; a tied parameter counts once."""
        return sum(frozen.entries.count for frozen in self._resolved)

    @property
    def digest(self) -> str:
        """SHA-256 of the values that the frozen entries had at the start."""
        return hashlib.sha256("".join(self._digests).encode()).hexdigest()

    def verify(self) -> int:
        """Check that every frozen entry has the bits that it had at the start; return how many.

        The start's values are kept as 32 bytes a parameter, so this reads the frozen entries
        once and compares digests. CheckError, naming the first parameters, when one moved or was
        replaced by another tensor; UserError when the model has since come under a trainer that
        cannot be guaranteed.
        """
        self._guard.put_back()
        refuse_unsupported(self._model)
        now = {id(parameter) for parameter in self._model.parameters()}
        moved = [
            frozen.name
            for frozen, digest in zip(self._resolved, self._digests, strict=True)
            if id(frozen.parameter) not in now or _digest(frozen) != digest
        ]
        if moved:
            names = ", ".join(moved[:5]) + (", ..." if len(moved) > 5 else "")
            raise CheckError(
                f"frozen entries changed since the freeze in {len(moved)} of "
                f"{len(self._resolved)} parameters: {names}; something besides the guarded "
                "optimizer wrote them, replaced the parameter or changed its dtype"
            )
        return self.count

    def remove(self) -> None:
        """Let the region train again. May be called twice."""
        self._mask.remove()
        self._guard.remove()
        self._check.remove()

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
def _digest(frozen: Resolved) -> str:
    """SHA-256 of the bytes of the values at the frozen entries, in the parameter's dtype."""
    values = frozen.entries.read(frozen.parameter)
    return hashlib.sha256(values.contiguous().view(torch.uint8).cpu().numpy().data).hexdigest()
