"""What tells documents apart, the same on every machine."""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import numpy as np

from freezetrain.evaluation.documents import Document


def fingerprint(document: Document) -> str:
    """Hash of a document's ids, the same on every machine."""
    ids = np.asarray(document.ids, dtype="<i8")
    return blake2b(ids.tobytes(), digest_size=8).hexdigest()


def digests(documents: Mapping[str, Sequence[Document]]) -> dict[str, str]:
    """Language -> a hash of its documents in their order."""
    return {
        language: blake2b("".join(map(fingerprint, texts)).encode(), digest_size=8).hexdigest()
        for language, texts in documents.items()
    }
