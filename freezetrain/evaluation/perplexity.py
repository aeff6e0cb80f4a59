"""The NLL of documents of uneven length in many languages, in one pass over a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.evaluation.documents import Document, Window, batches, windows
from freezetrain.evaluation.figures import DocumentSums, Figures
from freezetrain.evaluation.hits import Hits
from freezetrain.evaluation.metric import DocumentNLL
from freezetrain.forward import (
    Forward,
    accepted,
    context_length,
    eval_mode,
    logits_of,
    require_input_ids,
    reshard,
)
from freezetrain.head.chunks import chunks_of_logits
from freezetrain.head.find import Head, find_head
from freezetrain.head.inside import inside
from freezetrain.nll import NO_LABEL

# Turned into fp32 at once: those of a whole batch may be larger than the model. For each larger
# piece of memory a CPU asks the system anew, which takes longer than what is computed in it.
_LOGITS, _LOGITS_ON_GPU = 2**22, 2**24


def label_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the labels of each row: (NLL in nats [B] fp64, labels [B], labels ranked first [B]).

    ``logits`` is [B, L, V] of any float dtype; ``labels`` [B, L] stand at the places that predict
    them, NO_LABEL (-100) where nothing counts, whatever the logits there. The loss is taken in
    fp32. A label is ranked first if it is the argmax, as lm-evaluation-harness has it. All three
    are on the device of ``logits`` (MPS has no fp64: on the CPU), the last two int64.
    """
    nll, hits = _summed(*_losses(logits, labels))
    return nll, (labels != NO_LABEL).sum(1).to(nll.device), hits


def _losses(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The NLL of each label, 0 where none counts, and whether it is ranked first; both [B, L]."""
    labels = labels.to(logits.device)
    at_once = max(1, (_LOGITS_ON_GPU if logits.is_cuda else _LOGITS) // logits.shape[-1])
    rows, flat = logits.flatten(0, 1), labels.flatten()
    parts = (
        _losses_and_hits(rows[start : start + at_once].float(), flat[start : start + at_once])
        for start in range(0, max(1, len(flat)), at_once)
    )
    losses, hits = map(torch.cat, zip(*parts, strict=True))
    return losses.view(labels.shape), hits.view(labels.shape)


def _losses_and_hits(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=NO_LABEL)
    # The first of equals, as argmax, and faster.
    return losses, logits.max(-1).indices == labels


def _summed(losses: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
    device = torch.device("cpu") if losses.device.type == "mps" else losses.device
    return losses.to(device).double().sum(1), hits.sum(1).to(device)


def _head_losses(hidden: Tensor, head: Head, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What :func:`_losses` gives, from the ``hidden`` states [B, L, H] that a head is given."""
    labels = labels.to(hidden.device)
    places = (labels != NO_LABEL).flatten().nonzero()[:, 0]
    losses = torch.zeros(labels.numel(), dtype=torch.float32, device=hidden.device)
    hits = torch.zeros_like(losses, dtype=torch.bool)
    states, wanted = hidden.flatten(0, 1)[places], labels.flatten()[places]
    for part, logits in chunks_of_logits(states, head):
        loss, hit = _losses_and_hits(logits.float(), wanted[part])
        losses[places[part]], hits[places[part]] = loss, hit
    return losses.view(labels.shape), hits.view(labels.shape)


Progress = Callable[[int, int], None]

# Enough to keep a CPU busy; with more its caches, and memory that is at hand, no longer hold what
# one operation leaves for the next.
_TOKENS_ON_CPU = 1024


def evaluate(
    model: nn.Module,
    documents: Mapping[str, Sequence[Document]],
    *,
    max_length: int,
    overlap: int = 1,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
    forward: Forward | None = None,
) -> dict[str, Figures]:
    """Return the figures of each language of ``documents``; see :func:`evaluate_documents`."""
    results = evaluate_documents(
        model,
        documents,
        max_length=max_length,
        overlap=overlap,
        batch_tokens=batch_tokens,
        progress=progress,
        forward=forward,
    )
    return {language: sums.figures() for language, sums in results.items()}


def evaluate_documents(
    model: nn.Module,
    documents: Mapping[str, Sequence[Document]],
    *,
    max_length: int,
    overlap: int = 1,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
    forward: Forward | None = None,
) -> dict[str, DocumentSums]:
    """Return what ``model`` gives on each document of each language.

    ``model(input_ids=[B, L] int64, attention_mask=[B, L])`` gives an object with ``.logits``
    [B, L, V]: any causal LM of transformers. (The mask is left out for a model that takes none:
    padding stands to the right, where a causal model does not look.) Logits may also be what it
    returns itself. ``forward(model, ids)``, where given, calls a model of any other kind with ids
    [B, L], on its device, and returns logits [B, L, V] or an object that has them.

    A document of more than ``max_length`` tokens is cut into :func:`windows`, which share at least
    ``overlap`` of them: each token is predicted once. Windows of all languages are sorted by length
    and batched so that a batch holds at most ``batch_tokens`` tokens, on a CPU at most 1,024 (a
    longer window is a batch of its own), and next to no padding. Logits of places before the first
    predicted token of all rows are not computed, by a model that takes ``logits_to_keep``. Under
    torch.distributed each process takes every world-th window and the sums are reduced: all
    processes must call this and all get the same. They make as many forward passes each, so that
    ``model`` may be one that they hold together (under FSDP2 or DeepSpeed ZeRO).
    ``progress(done, total)`` is called with this process's predicted tokens.

    Dropout is off and no random number is drawn; the train/eval mode of every submodule is put
    back. Raises ``UserError`` for a language without documents or a ``max_length`` that the model
    does not have positions for, ``CheckError`` where an NLL is not finite.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # its forward would exchange buffers, at uneven numbers of batches
    _check(model, documents, max_length, overlap, batch_tokens)
    head = None
    if forward is None:
        require_input_ids(model)
        head = find_head(model)
    every = [document for texts in documents.values() for document in texts]
    cut = [
        window
        for number, document in enumerate(every)
        for window in windows(number, document, max_length, overlap)
    ]
    # Longest first: what does not fit into memory fails at once. Among equals those that predict
    # most, so that where little is predicted a whole batch does without the other logits.
    cut.sort(key=lambda window: (-len(window.ids), -window.predicted))
    device = next(model.parameters()).device
    if device.type == "cpu":
        batch_tokens = min(batch_tokens, _TOKENS_ON_CPU)
    parts = [cut]
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        parts = [cut[rank::world] for rank in range(world)]
        cut = parts[dist.get_rank()]
    own = list(batches(cut, batch_tokens))
    # Ranks that hold a model together must all take part in each pass: the rest count for nothing.
    passes = max(sum(1 for _ in batches(part, batch_tokens)) for part in parts)
    spare = (own or [parts[0][-1:]])[-1]

    metric = DocumentNLL(documents)
    if device.type != "mps":  # which has no fp64
        metric.to(device)  # NCCL reduces on the device only
    none = torch.zeros(0, dtype=torch.int64)
    metric.update(none, none.double(), none)  # a rank may have no window
    # Of which documents' tokens each is ranked first, a byte each until all are known.
    starts = [0, *accumulate(document.tokens for document in every)]
    ranked_first = torch.zeros(starts[-1], dtype=torch.uint8, device=device)
    total, done = sum(window.predicted for window in cut), 0
    # Not inference_mode: what a model keeps from this forward (rotary tables) must stay trainable.
    with eval_mode(model), torch.no_grad():
        for batch in own:
            nll, correct, hits = _window_sums(model, batch, device, forward, head)
            metric.update(torch.tensor([window.document for window in batch]), nll, correct)
            firsts = [starts[window.document] + window.before for window in batch]
            places = [
                torch.arange(first, first + window.predicted)
                for first, window in zip(firsts, batch, strict=True)
            ]
            ranked_first[torch.cat(places).to(device)] = hits.to(ranked_first)
            done += sum(window.predicted for window in batch)
            if progress is not None:
                progress(done, total)
        for _ in range(passes - len(own)):
            _window_sums(model, spare, device, forward, head)
    reshard(model)
    if len(parts) > 1:
        dist.all_reduce(ranked_first)  # each token was one process's
    sums = metric.document_sums()
    kept, result, first = ranked_first.cpu().numpy().astype(bool), {}, 0
    for language, texts in documents.items():
        end = first + sum(document.tokens for document in texts)
        result[language] = replace(sums[language], hits=Hits.of(texts, kept[first:end]))
        first = end
    return result


def _check(
    model: nn.Module,
    documents: Mapping[str, Sequence[Document]],
    max_length: int,
    overlap: int,
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
    if max_length < 1 or batch_tokens < 1:
        raise UserError(
            "expected max_length and batch_tokens of 1 token or more, got "
            f"{max_length} and {batch_tokens}"
        )
    if not 1 <= overlap <= max_length:
        raise UserError(
            f"expected an overlap from 1 to max_length, {max_length} tokens, got {overlap}; a "
            "window's first prediction needs the token before it"
        )
    positions = context_length(model)
    if positions is not None and max_length > positions:
        raise UserError(
            f"max_length is {max_length} tokens but the model has {positions} positions; "
            f"use {positions} or less"
        )


def _window_sums(
    model: nn.Module,
    batch: Sequence[Window],
    device: torch.device,
    forward: Forward | None,
    head: Head | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each window's NLL and hits, [B], and which predicted tokens are hits, window after window."""
    lengths = torch.tensor([len(window.ids) - 1 for window in batch])
    input_ids = torch.zeros(len(batch), int(lengths.max()), dtype=torch.int64)
    labels = torch.full_like(input_ids, NO_LABEL)
    for row, window in enumerate(batch):
        ids = torch.tensor(window.ids)
        end = len(ids) - 1
        input_ids[row, :end] = ids[:-1]
        labels[row, end - window.predicted : end] = ids[1 + end - window.predicted :]
    mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
    # What stands before is context in every row; a model that computes all logits does no harm.
    first = min(len(window.ids) - 1 - window.predicted for window in batch)
    labels = labels[:, first:]
    options = {"attention_mask": mask.long().to(device), "use_cache": False}
    if first:
        options["logits_to_keep"] = labels.shape[1]
    if head is not None:
        found: list[tuple[Tensor, Tensor]] = []

        def computed(hidden: Tensor) -> Tensor:
            found.append(_head_losses(hidden[:, -labels.shape[1] :], head, labels))
            return found[0][0]

        with inside(head, computed):
            model(input_ids=input_ids.to(device), **accepted(model, options))
        losses, hits = found[0]
    else:
        logits = logits_of(model, input_ids.to(device), forward, options)
        losses, hits = _losses(logits[:, -labels.shape[1] :], labels)
    return (*_summed(losses, hits), hits[(labels != NO_LABEL).to(hits.device)])
