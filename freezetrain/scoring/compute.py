"""Scores of a model's weights, computed by running it over the text of a language."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from freezetrain.errors import CheckError, UserError, near_misses
from freezetrain.forward import without_cache
from freezetrain.head.find import Head, find_head
from freezetrain.head.inside import inside, joined
from freezetrain.head.loss import label_loss
from freezetrain.nll import NO_LABEL, token_nll
from freezetrain.regions.base import base_of
from freezetrain.regions.blocks import input_dim, outer_parameters, owner, selection_facts
from freezetrain.regions.parameters import full_shape
from freezetrain.scoring.methods import (
    GRADIENT_METHODS,
    METHODS,
    magnitude,
    scored_parameters,
    wanda,
)
from freezetrain.scoring.partition import Partition
from freezetrain.scoring.scores import Scores

# Tokens that are run at once, since their activations are held: of 4,096 tokens they are 5 GB for
# a model of 270 million weights. More are no faster on a CPU.
_TOKENS_OF_A_PASS = {"cpu": 1024, "other": 4096}


def compute_scores(
    model: nn.Module,
    batches: Iterable[Tensor],
    method: str = "taylor",
    *,
    parameters: Mapping[str, nn.Parameter] | None = None,
    language: str | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Scores:
    """Score the weights of ``model`` on the text of one language, in this process alone.

    Args:
        model: ``model(input_ids=...)`` returns an object with ``logits`` [B, L, V].
        batches: token ids, int64 [B, L], each as for :meth:`Scoring.add`. Not read by
            ``magnitude``.
        method: one of ``METHODS``, see :mod:`freezetrain.scoring.methods` for the formulas.
        parameters: what to score, by full name; None = the decoder blocks with their norms.
        language: kept in ``Scores.made``.
        on_batch: called after each batch with the number of batches done.

    Returns:
        fp32 on the CPU, one tensor in the shape of each parameter.

    Raises:
        UserError, CheckError: as :class:`Scoring`.
    """
    with Scoring(model, [method], parameters) as scoring:
        for number, batch in enumerate(batches if scoring.reads_text else ()):
            scoring.add(batch)
            if on_batch is not None:
                on_batch(number + 1)
        tensors = {name: t for name, t in scoring.tensors(method, last=True) if t is not None}
        return Scores(tensors, base_of(model), scoring.made(method, language))


class Scoring:
    """Scores of the weights of ``model`` by several methods in one pass over one language's text.

    A context manager; the weights do not change. The loss is the mean next-token NLL of a batch,
    in eval mode. A batch of another size than the first (the last one, usually) counts by its share
    of the first one's tokens. Modes, ``requires_grad`` flags and gradients that the model had
    before are put back, also after an exception.

    Memory beyond the weights: for each method that sums gradients one fp32 copy of the scored
    parameters; the gradient of one parameter at a time, since each is added up and freed as soon as
    it is there; and the activations of one pass, which is some rows of a batch, of 1,024 tokens on
    a CPU and of 4,096 elsewhere, but one row at least. A batch that takes several passes needs for
    ``taylor-abs`` and ``fisher`` one more fp32 copy, in which its gradient is added up.

    Args:
        model: ``model(input_ids=...)`` returns an object with ``logits`` [B, L, V].
        methods: of ``METHODS``, see :mod:`freezetrain.scoring.methods`.
        parameters: what to score, by full name; by default what
            :func:`~freezetrain.scoring.methods.scored_parameters` finds.
        partition: how ranks share model and batches; by default this process is alone. All ranks
            make the same calls.
        embeddings: score what lies outside the decoder blocks too, but not by ``wanda``; ``made``
            names it, and :func:`~freezetrain.scoring.selection.select` leaves it out of regions.

    Raises:
        UserError: no method or an unknown one; parameters that are not the model's, not of a
            floating dtype, or (``wanda``) not the weight of a linear layer that was called; no
            batch, or one of another dtype or shape.
        CheckError: a loss that is not finite; the message names the batch. All ranks raise it.
    """

    def __init__(
        self,
        model: nn.Module,
        methods: Sequence[str],
        parameters: Mapping[str, nn.Parameter] | None = None,
        partition: Partition | None = None,
        embeddings: bool = False,
    ) -> None:
        self.methods = list(dict.fromkeys(methods))
        for method in self.methods or [""]:
            if method not in METHODS:
                raise UserError(
                    f"expected a score method among {', '.join(METHODS)}, got {method!r}"
                    f"{near_misses(method, METHODS)}"
                )
        by_gradient = [method for method in self.methods if method in GRADIENT_METHODS]
        self._linear = [method for method in by_gradient if GRADIENT_METHODS[method].linear]
        self._others = [method for method in by_gradient if method not in self._linear]
        self.model = model
        self.parameters = {
            method: scored_parameters(model, method, parameters, embeddings)
            for method in self.methods
        }
        self._outer = set(outer_parameters(model)) if embeddings else set()
        self.sequences = 0
        self.tokens = 0  # predicted ones
        self._partition = partition or Partition()
        self._batches = 0
        self._first_tokens = 0
        self._share = 1.0  # tokens of the batch in hand over those of the first
        self._scale = 1.0  # from a gradient as it arrives to that of this batch's mean loss
        self._counts = True  # whether the rows in hand do
        # Gradients of the batch in hand, where they are added up before a term is made of them.
        self._pending: dict[str, Tensor] | None = None
        self._nll = 0.0  # of all ranks, in nats
        # The same of this rank's rows alone, of each batch since losses were last added up.
        self._recent = torch.zeros(
            self._partition.turns, dtype=torch.float64, device=self._partition.device(model)
        )
        self._sums: dict[str, dict[str, Tensor]] = {}  # method -> name -> sum over batches
        self._head: Head | None = None
        self._stack = ExitStack()

    @property
    def reads_text(self) -> bool:
        """Whether any method does."""
        return self.methods != ["magnitude"]

    def __enter__(self) -> Self:
        # Before anything looks at what passes through the model.
        self._head = find_head(self.model) if self.reads_text else None
        with ExitStack() as stack:
            by_gradient = [*self._linear, *self._others]
            trainable = self.parameters[by_gradient[0]] if by_gradient else {}
            stack.enter_context(_for_scoring(self.model, trainable))
            stack.enter_context(torch.set_grad_enabled(bool(by_gradient)))
            for method in by_gradient:
                self._sums[method] = {
                    name: torch.zeros_like(self._partition.part(parameter), dtype=torch.float32)
                    for name, parameter in trainable.items()
                }
            for name, parameter in trainable.items():
                hook = self._gradient_hook(name)
                stack.callback(parameter.register_post_accumulate_grad_hook(hook).remove)  # type: ignore[no-untyped-call]
            if "wanda" in self.methods:
                self._sums["wanda"] = {}
                for name, parameter in self.parameters["wanda"].items():
                    stack.callback(self._watch_inputs(name, parameter))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def add(self, batch: Tensor) -> None:
        """Run one batch, or this rank's part of it; all ranks are given all batches.

        ``batch`` is token ids, int64 [B, L] with L of 2 or more, and is moved to the model's
        device. No padding: every token but a row's first counts.
        """
        fits = batch.dtype == torch.int64 and batch.ndim == 2 and batch.shape[1] > 1
        if not fits or not len(batch):
            raise UserError(
                f"expected batches of token ids, int64 [B, L] with L of 2 or more, got "
                f"{batch.dtype} {list(batch.shape)} as batch {self._batches}"
            )
        tokens = batch.shape[0] * (batch.shape[1] - 1)
        self._first_tokens = self._first_tokens or tokens
        self._share = tokens / self._first_tokens
        self._scale = self._partition.loss_factor / tokens
        kind = "cpu" if self._device.type == "cpu" else "other"
        at_once = max(1, _TOKENS_OF_A_PASS[kind] // batch.shape[1])
        passes = self._partition.passes(self._batches, batch, at_once)
        self._pending = {} if len(passes) > 1 else None
        for rows, self._counts in passes:
            self._run(rows)
        for name, gradient in (self._pending or {}).items():
            parameter = self.parameters[self._others[0]][name]
            self._add_terms(self._others, name, parameter, gradient)
        self._pending = None
        self._batches += 1
        self.sequences += len(batch)
        self.tokens += tokens
        if self._batches % self._partition.turns == 0:
            self._add_up_losses()

    def tensors(self, method: str, last: bool = False) -> Iterator[tuple[str, Tensor | None]]:
        """Name and finished scores of the text so far, one parameter at a time.

        fp32 on the CPU, whole, on rank 0; None on the others, which must ask as well. More batches
        may be added afterwards, unless this is the ``last`` time: then sums are freed on the way.
        """
        self._after_text(method)
        for name, parameter in self.parameters[method].items():
            if method == "magnitude":
                yield name, self._whole(parameter, magnitude(self._partition.part(parameter)))
            elif method == "wanda":
                yield name, self._wanda(name, parameter)
            else:
                total = self._sums[method][name]
                if last:
                    del self._sums[method][name]
                else:
                    total = total.clone()  # what is given must not change
                part = self._partition.part(parameter)
                total = GRADIENT_METHODS[method].finish(part, self._partition.total(total))
                yield name, self._whole(parameter, total)

    def shapes(self, method: str) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what :meth:`tensors` gives, in order."""
        return {name: full_shape(value) for name, value in self.parameters[method].items()}

    def made(self, method: str, language: str | None = None) -> dict[str, Any]:
        """How the scores of the text so far came about, see :class:`Scores`; all ranks ask."""
        self._after_text(method)
        reads = method != "magnitude"
        outer = [name for name in self.parameters[method] if name in self._outer]
        return {
            "method": method,
            "language": language,
            "sequences": self.sequences if reads else 0,
            "tokens": self.tokens if reads else 0,
            "batches": self.tokens / self._first_tokens if reads else 1,
            "loss": self._nll / self.tokens if reads else None,
            **selection_facts(self.model, self.parameters[method]),
            **({"embeddings": outer} if outer else {}),
        }

    def _run(self, rows: Tensor) -> None:
        """Run a pass over some rows of a batch.

        Backward from the sum of their NLL, not from the mean: gradients of that would be so small
        that float16 rounds many of them to zero.
        """
        input_ids = rows.to(self._device)
        nll = self._sum_of_nll(input_ids) * self._counts
        self._recent[self._batches % self._partition.turns] += nll.detach()
        if nll.requires_grad:
            nll.backward()  # type: ignore[no-untyped-call]

    def _sum_of_nll(self, input_ids: Tensor) -> Tensor:
        options, head = without_cache(self.model), self._head
        if head is None:
            return token_nll(self.model(input_ids=input_ids, **options).logits, input_ids).sum()
        labels = F.pad(input_ids[:, 1:], (0, 1), value=NO_LABEL)
        with inside(head, lambda hidden: label_loss(hidden, head, labels)) as losses:
            output = self.model(input_ids=input_ids, **options)
        return joined(losses[0], output)

    def _add_up_losses(self) -> None:
        """Add the latest losses of all ranks, which all call this. CheckError as the class."""
        turns = self._partition.turns
        losses = self._partition.everywhere(self._recent).tolist()
        self._recent.zero_()
        for number, nll in enumerate(losses, start=(self._batches - 1) // turns * turns):
            if not isfinite(nll):
                raise CheckError(f"the loss of batch {number} (counted from 0) is {nll}")
        self._nll += sum(losses)

    @property
    def _device(self) -> torch.device:
        return self._partition.device(self.model)

    def _gradient_hook(self, name: str) -> Callable[[Tensor], None]:
        """Add what a pass's gradient of a parameter gives to the sums of methods, and free it."""

        def hook(parameter: Any) -> None:
            gradient = self._partition.gradient(parameter)
            parameter.grad = None
            gradient *= self._scale
            self._add_terms(self._linear, name, parameter, gradient)
            if self._pending is None:
                self._add_terms(self._others, name, parameter, gradient)
            elif self._others:
                held = self._pending.get(name)
                self._pending[name] = gradient if held is None else held.add_(gradient)

        return hook

    def _add_terms(
        self, methods: Sequence[str], name: str, parameter: nn.Parameter, gradient: Tensor
    ) -> None:
        weight = self._partition.part(parameter)
        for method in methods:
            term = GRADIENT_METHODS[method].term(weight, gradient)
            self._sums[method][name].add_(term, alpha=self._share)

    def _watch_inputs(self, name: str, parameter: nn.Parameter) -> Callable[[], None]:
        """Add up the squared inputs of a linear layer, and how often it was called, last: [in + 1].

        Returns what ends it.
        """
        features = full_shape(parameter)[input_dim(self.model, name)]
        sums = self._sums["wanda"][name] = torch.zeros(features + 1, device=self._device)

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self._counts:
                sums[:-1] += inputs[0].detach().float().square().flatten(0, -2).sum(0)
                sums[-1] += 1

        return owner(self.model, name).register_forward_pre_hook(hook).remove

    def _wanda(self, name: str, parameter: nn.Parameter) -> Tensor | None:
        sums = self._partition.everywhere(self._sums["wanda"][name]).cpu()
        if not sums[-1]:
            raise UserError(f"expected a layer that the model calls, {name!r} saw no input")
        weight = self._whole(parameter, self._partition.part(parameter))
        norm, dim = sums[:-1].sqrt(), input_dim(self.model, name)
        return None if weight is None else wanda(weight, norm, dim)

    def _whole(self, parameter: nn.Parameter, part: Tensor) -> Tensor | None:
        return self._partition.whole(parameter, part.float())

    def _after_text(self, method: str) -> None:
        if method == "magnitude":
            return
        if not self.tokens:
            raise UserError("expected at least one batch of text to score, got none")
        self._add_up_losses()


@contextmanager
def _for_scoring(model: nn.Module, trainable: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Eval mode, gradients of ``trainable`` alone, none from before; all put back at the end."""
    modes = [(module, module.training) for module in model.modules()]
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    wanted = {id(parameter) for parameter in trainable.values()}
    try:
        model.eval()
        for parameter, _, _ in before:
            parameter.grad = None
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, requires_grad, grad in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, training in modes:
            module.training = training
