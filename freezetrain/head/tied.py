"""The gradient of an embedding that is tied to the head."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from freezetrain.head.find import Head


@contextmanager
def sparse_lookups(model: nn.Module, head: Head) -> Iterator[None]:
    """While this lasts a tied embedding's gradient is of the rows that were looked up alone.

    Autograd adds it to that of the head in place, where it would otherwise make another [V, H] for
    it first. For backward passes of :func:`~freezetrain.head.loss.head_loss` in one process:
    engines of several reduce either dense gradients or sparse ones. Nothing for an embedding of
    its own, whose optimizer wants a dense gradient.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    tied = isinstance(embedding, nn.Embedding) and embedding.weight is head.module.weight
    if not tied or embedding.sparse:
        yield
        return
    embedding.sparse = True
    try:
        yield
    finally:
        embedding.sparse = False
