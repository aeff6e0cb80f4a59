"""The NLL of documents of uneven length in many languages, in one pass over a model."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.evaluation.documents import Document
from freezetrain.evaluation.figures import Figures
from freezetrain.evaluation.metric import LanguageNLL
from freezetrain.freezing.fsdp import reshard
from freezetrain.nll import token_nll


@dataclass(frozen=True)
class Window:
    """A piece of a document: each of ``ids`` but the first is predicted."""

    language: int
    ids: list[int]
    bytes: int  # of the whole document in its first window, 0 in the others


def evaluate(
    model: nn.Module,
    documents: Mapping[str, Sequence[Document]],
    *,
    max_length: int,
    batch_tokens: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Figures]:
    """Return the figures of each language of ``documents``.

    ``model(input_ids=[B, L] int64, attention_mask=[B, L])`` gives an object with ``.logits``
    [B, L, V]: any causal LM of transformers. (The mask is left out for a model that takes none:
    padding stands to the right, where a causal model does not look.)

    A document longer than ``max_length`` ids is cut into windows of ``max_length`` which overlap
    by one token, the context of the next window's first prediction: each token is predicted once.
    Windows of all languages are sorted by length, padded and batched so that a batch holds at most
    ``batch_tokens`` ids (a longer window is a batch of its own). Under torch.distributed each
    process takes every world-th window and the sums are reduced: all processes must call this and
    all get the same figures. They make as many forward passes each, so that ``model`` may be one
    that they hold together (under FSDP2 or DeepSpeed ZeRO). ``progress(done, total)`` is told this
    process's tokens.

    Dropout is off and no random number is drawn; the train/eval mode of every submodule is put
    back. Raises ``UserError`` for a language without documents or a ``max_length`` that the model
    does not have positions for, ``CheckError`` where an NLL is not finite.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # its forward would exchange buffers, at uneven numbers of batches
    _check(model, documents, max_length, batch_tokens)
    windows = [
        window
        for language, texts in enumerate(documents.values())
        for document in texts
        for window in _windows(language, document, max_length)
    ]
    # Longest first: what does not fit into memory fails at once. The sort is stable.
    windows.sort(key=lambda window: -len(window.ids))
    distributed = dist.is_available() and dist.is_initialized()
    parts = [windows]
    if distributed:
        world = dist.get_world_size()
        parts = [windows[rank::world] for rank in range(world)]
        windows = parts[dist.get_rank()]
    batches = list(_batches(windows, batch_tokens))
    # Ranks that hold a model together must all take part in each pass: the rest count for nothing.
    passes = max(sum(1 for _ in _batches(part, batch_tokens)) for part in parts)
    spare = (batches or [parts[0][-1:]])[-1]

    device = next(model.parameters()).device
    total, done = sum(len(window.ids) - 1 for window in windows), 0
    sums = []
    # Not inference_mode: what a model keeps from this forward (rotary tables) must stay trainable.
    with _eval_mode(model), torch.no_grad():
        for batch in batches:
            sums.append(_window_nll(model, batch, device))
            done += sum(len(window.ids) - 1 for window in batch)
            if progress is not None:
                progress(done, total)
        for _ in range(passes - len(batches)):
            _window_nll(model, spare, device)
    reshard(model)

    metric = LanguageNLL(list(documents))
    if distributed:
        metric.to(device)  # NCCL reduces on the device only
    metric.update(
        torch.tensor([window.language for window in windows], dtype=torch.int64),
        torch.cat(sums) if sums else torch.zeros(0, dtype=torch.float64),
        torch.tensor([len(window.ids) - 1 for window in windows], dtype=torch.int64),
        torch.tensor([window.bytes for window in windows], dtype=torch.int64),
    )
    return metric.figures()


def _check(
    model: nn.Module,
    documents: Mapping[str, Sequence[Document]],
    max_length: int,
    batch_tokens: int,
) -> None:
    if not documents:
        raise UserError("expected documents of at least one language, got none")
    for language, texts in documents.items():
        if not texts:
            raise UserError(
                f"expected at least one document for each language, got none for {language!r}; "
                "give it a text or leave the language out"
            )
    if max_length < 2 or batch_tokens < 1:
        raise UserError(
            "expected max_length of 2 tokens or more and batch_tokens of 1 or more, got "
            f"{max_length} and {batch_tokens}"
        )
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(positions, int) and max_length > positions:
        raise UserError(
            f"max_length is {max_length} tokens but the model has {positions} positions; "
            f"use {positions} or less"
        )


def _windows(language: int, document: Document, max_length: int) -> Iterator[Window]:
    """Cut so that each window but the last holds ``max_length`` ids and predicts all but one."""
    for start in range(0, len(document.ids) - 1, max_length - 1):
        ids = document.ids[start : start + max_length]
        yield Window(language, ids, document.bytes if start == 0 else 0)


def _batches(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Consecutive windows, longest first, so that rows × longest row <= ``batch_tokens``."""
    start = 0
    while start < len(windows):
        rows = max(1, batch_tokens // len(windows[start].ids))
        yield list(windows[start : start + rows])
        start += rows


def _window_nll(model: nn.Module, batch: Sequence[Window], device: torch.device) -> Tensor:
    """Summed NLL in nats of each window: [B] fp64 on the CPU."""
    lengths = torch.tensor([len(window.ids) for window in batch])
    input_ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.int64)
    for row, window in enumerate(batch):
        input_ids[row, : len(window.ids)] = torch.tensor(window.ids)
    mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    input_ids = input_ids.to(device)
    options = {"attention_mask": mask.long().to(device), "use_cache": False}
    taken = inspect.signature(model.forward).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        names = {parameter.name for parameter in taken}
        options = {name: value for name, value in options.items() if name in names}
    logits = model(input_ids=input_ids, **options).logits
    losses = token_nll(logits, input_ids).cpu().double()
    # where, not a product: whatever stands at a padded place, 0 · NaN included, must not count.
    return torch.where(mask[:, 1:], losses, 0.0).sum(1)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put each submodule's own mode back, as some may be kept in eval mode on purpose."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
