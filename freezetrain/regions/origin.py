"""The :class:`Base` of a live model."""

from torch import nn

from freezetrain.regions.base import Base, fingerprint


def base_of(model: nn.Module) -> Base:
    """Fingerprint ``model``, with the name and the revision that transformers loaded it under."""
    return Base(
        name=getattr(model, "name_or_path", None) or None,
        revision=getattr(getattr(model, "config", None), "_commit_hash", None),
        fingerprint=fingerprint(model),
    )
