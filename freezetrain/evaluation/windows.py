"""Documents cut into what a model can look at in one pass, and passes of windows of like length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from freezetrain.evaluation.documents import Document


@dataclass(frozen=True)
class Window:
    """A piece of a document: the last ``predicted`` of ``ids`` are predicted."""

    document: int
    ids: list[int]
    predicted: int


def windows(number: int, document: Document, max_length: int, overlap: int = 1) -> Iterator[Window]:
    """Windows in which each token of the document is predicted once.

    A window has at most ``max_length`` tokens that the model is given, and one more, predicted from
    them all. Each but the first predicts those that the one before it left, from at least
    ``overlap`` tokens that are predicted no more; the last one reaches as far back as it may. With
    an ``overlap`` of 1 these are the windows of lm-evaluation-harness's ``loglikelihood_rolling``
    (``get_rolling_token_windows`` with ``context_len=overlap``,
    https://github.com/EleutherAI/lm-evaluation-harness).
    """
    done = min(max_length, document.tokens)
    yield Window(number, document.ids[: done + 1], done)
    while done < document.tokens:
        predicted = min(document.tokens - done, max_length - overlap + 1)
        done += predicted
        yield Window(number, document.ids[done - max_length : done + 1], predicted)


def batches(longest_first: Sequence[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Consecutive windows, such that rows × longest row <= ``batch_tokens``, or a single one."""
    start = 0
    while start < len(longest_first):
        rows = max(1, batch_tokens // (len(longest_first[start].ids) - 1))
        yield list(longest_first[start : start + rows])
        start += rows
