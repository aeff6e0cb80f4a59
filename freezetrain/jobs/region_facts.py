"""What a region is of a model: how large, where, and how it was made."""

from typing import Any

from torch import nn

from freezetrain.regions import Region, decoder_blocks


def region_facts(region: Region, model: nn.Module, *, file: str, frozen: str) -> dict[str, Any]:
    """For results and report, ready for JSON; ``model`` may be on the meta device.

    ``share`` is of all the model's weights. ``coverage`` holds, for each kind of parameter in the
    decoder blocks that has an entry, layer → share in the region; ``elsewhere`` the shares of
    parameters outside the blocks. ``frozen`` says what training did to the entries.
    """
    coverage = region.coverage(model)
    blocks = [f"{name}." for name, _ in decoder_blocks(model)]
    by_kind: dict[str, dict[str, float]] = {}
    elsewhere = {}
    for name, share in coverage.tensors.items():
        layer = next((n for n, block in enumerate(blocks) if name.startswith(block)), None)
        if layer is not None:
            kind = name.removeprefix(blocks[layer]).removesuffix(".weight")
            by_kind.setdefault(kind, {})[str(layer)] = share
        elif share:
            elsewhere[name] = share
    return {
        "entries": region.count,
        "share": coverage.model,
        "file": file,
        "base": region.base.name if region.base else None,
        "digest": region.digest,
        "made": region.made,
        "frozen": frozen,
        "coverage": {kind: shares for kind, shares in by_kind.items() if any(shares.values())},
        "elsewhere": elsewhere,
    }
