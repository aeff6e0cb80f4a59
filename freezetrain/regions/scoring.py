"""Run a model over a language's text and score its weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from freezetrain.errors import CheckError, UserError, near_misses
from freezetrain.nll import token_nll
from freezetrain.regions.base import base_of
from freezetrain.regions.blocks import block_parameters, input_dim, is_norm
from freezetrain.regions.resolve import plain_name
from freezetrain.regions.score_methods import GRADIENT_METHODS, METHODS, magnitude, wanda
from freezetrain.regions.scores import Scores


def compute_scores(
    model: nn.Module,
    batches: Iterable[Tensor],
    method: str = "taylor",
    *,
    parameters: Mapping[str, nn.Parameter] | None = None,
    language: str | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Scores:
    """Score the weights of ``model`` on the text of one language; the weights do not change.

    The loss is the mean next-token NLL of a batch, in eval mode. A batch of another size than
    the first (the last one, usually) counts by its share of the first one's tokens. Memory beyond
    the weights: one fp32 copy of the scored parameters and the gradient of one parameter at a
    time, since each gradient is added up and freed as soon as it is there. Modes, ``requires_grad``
    flags and gradients that the model had before are put back, also after an exception.

    Args:
        model: ``model(input_ids=...)`` returns an object with ``logits`` [B, L, V].
        batches: token ids, int64 [B, L] with L of 2 or more, moved to the model's device. No
            padding: every token but a row's first counts. Not read by ``magnitude``.
        method: one of ``METHODS``, see :mod:`freezetrain.regions.score_methods`.
        parameters: what to score, by full name. By default the decoder blocks with their norms
            and biases; for ``wanda`` the weights of the blocks' linear layers only.
        language: kept in ``Scores.made``.
        on_batch: called after each batch with the number of batches done.

    Raises:
        UserError: unknown method; parameters that are not the model's, not of a floating dtype,
            or (``wanda``) not the weight of a linear layer that was called; no batch, or one of
            another dtype or shape.
        CheckError: a loss that is not finite; the message names the batch.
    """
    if method not in METHODS:
        raise UserError(
            f"expected a score method among {', '.join(METHODS)}, got {method!r}"
            f"{near_misses(method, METHODS)}"
        )
    if parameters is None:
        parameters = block_parameters(model, norms=True)
        if method == "wanda":
            parameters = {n: p for n, p in parameters.items() if _is_linear_weight(model, n)}
    _check_parameters(model, parameters)
    run = _Run(model, batches, on_batch)
    if method == "magnitude":
        tensors = {name: magnitude(p.detach()) for name, p in parameters.items()}
    elif method == "wanda":
        tensors = _by_inputs(run, parameters)
    else:
        tensors = _by_gradients(run, parameters, method)
    made = {
        "method": method,
        "language": language,
        "sequences": run.sequences,
        "tokens": run.tokens,
        "batches": run.tokens / run.first_tokens if run.tokens else 1,
        "loss": run.nll / run.tokens if run.tokens else None,
        "norms": [name for name in parameters if is_norm(model, name)],
        "transposed": [name for name in parameters if input_dim(model, name) == -2],
    }
    return Scores(tensors, base_of(model), made)


@dataclass
class _Run:
    """One pass of a model over the batches, and what it has seen so far."""

    model: nn.Module
    batches: Iterable[Tensor]
    on_batch: Callable[[int], None] | None
    sequences: int = 0
    tokens: int = 0  # predicted ones
    nll: float = 0.0  # over them, in nats
    first_tokens: int = 0
    share: float = 1.0  # tokens of the batch in hand over those of the first

    def losses(self) -> Iterator[Tensor]:
        """The mean loss of each batch, checked, with ``share`` set for it."""
        device = next(self.model.parameters()).device
        for index, batch in enumerate(self.batches):
            fits = batch.dtype == torch.int64 and batch.ndim == 2 and batch.shape[1] > 1
            if not fits or not len(batch):
                raise UserError(
                    f"expected batches of token ids, int64 [B, L] with L of 2 or more, got "
                    f"{batch.dtype} {list(batch.shape)} as batch {index}"
                )
            tokens = batch.shape[0] * (batch.shape[1] - 1)
            self.first_tokens = self.first_tokens or tokens
            self.share = tokens / self.first_tokens
            self.sequences += len(batch)
            self.tokens += tokens
            input_ids = batch.to(device)
            loss = token_nll(self.model(input_ids=input_ids).logits, input_ids).mean()
            if not torch.isfinite(loss):
                raise CheckError(f"the loss of batch {index} (counted from 0) is {loss.item()}")
            self.nll += loss.item() * tokens
            yield loss
            if self.on_batch is not None:
                self.on_batch(index + 1)
        if not self.tokens:
            raise UserError("expected at least one batch of text to score, got none")


def _by_gradients(
    run: _Run, parameters: Mapping[str, nn.Parameter], method: str
) -> dict[str, Tensor]:
    """Add up a term of each batch's gradients in one fp32 accumulator a parameter."""
    term, finish = GRADIENT_METHODS[method]
    totals = {
        name: torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)
        for name, parameter in parameters.items()
    }

    def take(total: Tensor) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            total.add_(term(parameter.detach(), parameter.grad.float()), alpha=run.share)
            parameter.grad = None

        return hook

    with ExitStack() as stack:
        stack.enter_context(_for_scoring(run.model, parameters))
        stack.enter_context(torch.enable_grad())
        for name, parameter in parameters.items():
            handle = parameter.register_post_accumulate_grad_hook(take(totals[name]))
            stack.callback(handle.remove)
        for loss in run.losses():
            loss.backward()
    for name, parameter in parameters.items():  # one at a time, so that no second copy is made
        totals[name] = finish(parameter.detach(), totals[name]).cpu()
    return totals


def _by_inputs(run: _Run, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Add up the squared inputs of each linear layer, an fp32 vector [in] a layer."""
    squares: dict[str, Tensor] = {}

    def take(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            total = inputs[0].float().square().flatten(0, -2).sum(0)
            squares[name] = squares[name] + total if name in squares else total

        return hook

    with ExitStack() as stack:
        stack.enter_context(_for_scoring(run.model, {}))
        stack.enter_context(torch.no_grad())
        for name in parameters:
            layer = _linear_layer(run.model, name)
            stack.callback(layer.register_forward_pre_hook(take(name)).remove)
        for _ in run.losses():
            pass
    tensors = {}
    for name, parameter in parameters.items():
        if name not in squares:
            raise UserError(f"expected a layer that the model calls, {name!r} saw no input")
        norm, dim = squares[name].sqrt(), input_dim(run.model, name)
        tensors[name] = wanda(parameter.detach(), norm, dim).cpu()
    return tensors


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


def _check_parameters(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
    if not parameters:
        raise UserError("expected at least one parameter to score, got none")
    known = {
        plain_name(name): parameter
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    for name, parameter in parameters.items():
        if known.get(name) is not parameter:
            raise UserError(
                f"expected parameters of the model to score, {name!r} is not one"
                f"{near_misses(name, known)}"
            )
        if not parameter.is_floating_point():
            raise UserError(
                f"expected parameters of a floating dtype to score, got {parameter.dtype} for "
                f"{name!r}: load the model without quantization"
            )


def _is_linear_weight(model: nn.Module, name: str) -> bool:
    """Whether ``name`` is the weight of a linear layer: nn.Linear, or transformers' Conv1D."""
    path, _, leaf = name.rpartition(".")
    layer = model.get_submodule(path)
    return leaf == "weight" and (isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D")


def _linear_layer(model: nn.Module, name: str) -> nn.Module:
    layer = model.get_submodule(name.rpartition(".")[0])
    if not _is_linear_weight(model, name):
        raise UserError(
            f"expected the weights of linear layers to score with wanda, got {name!r} of "
            f"{type(layer).__name__}: pass parameters= without it, or another method"
        )
    return layer
