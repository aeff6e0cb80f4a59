"""The weight matrices of the decoder blocks, with their rows and columns in the layer's terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from freezetrain.regions.blocks import block_parameters, decoder_blocks, input_dim
from freezetrain.regions.entries import Entries
from freezetrain.regions.region import Region
from freezetrain.regions.resolve import plain_name

Direction = Literal["rows", "columns"]
"""Rows belong to output features, columns to input features, however a matrix is stored."""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix of a decoder block, or one for each of several fused experts [E, ., .]."""

    name: str
    """Full name of the parameter."""
    kind: str
    """Its name within the block, without ``.weight``: ``mlp.down_proj``."""
    layer: int
    """Number of the block, from 0."""
    shape: tuple[int, ...]
    input_dim: int
    """Dimension that runs over input features: -1, or -2 where it is stored transposed."""

    def dim(self, direction: Direction) -> int:
        """Dimension that runs over the rows, or the columns: -1 or -2."""
        return self.input_dim if direction == "columns" else -3 - self.input_dim

    def features(self, direction: Direction) -> int:
        """Output features (rows) or input features (columns), of each expert."""
        return self.shape[self.dim(direction)]

    def whole(self, direction: Direction, index: Tensor | Sequence[int]) -> Entries:
        """Whole rows, or columns: ``index`` [n] into all of them, those of expert 0 first."""
        dim = self.dim(direction)
        chosen = torch.zeros(*self.shape[:-2], self.features(direction), dtype=torch.bool)
        chosen.view(-1)[torch.as_tensor(index, dtype=torch.int64)] = True
        return Entries.from_mask(chosen.unsqueeze(-3 - dim).expand(self.shape))


def block_matrices(model: nn.Module) -> list[Matrix]:
    """All of them, in the model's order; biases, norms and convolutions are not.

    Raises:
        UserError: as :func:`decoder_blocks`.
    """
    blocks = {f"{block}.": number for number, (block, _) in enumerate(decoder_blocks(model))}
    found = []
    for name, parameter in block_parameters(model).items():
        owner, _, leaf = name.rpartition(".")
        convolves = isinstance(model.get_submodule(owner), nn.modules.conv._ConvNd)
        if parameter.ndim < 2 or leaf.endswith("bias") or convolves:
            continue
        block = next(block for block in blocks if name.startswith(block))
        kind = name.removeprefix(block).removesuffix(".weight")
        shape = tuple(parameter.shape)
        found.append(Matrix(name, kind, blocks[block], shape, input_dim(model, name)))
    return found


def matrix_entries(region: Region, model: nn.Module) -> list[tuple[Matrix, Entries]]:
    """The matrices of which the region has entries, with these.

    Raises:
        UserError: a region that does not fit the model, or as :func:`decoder_blocks`.
    """
    entries = {plain_name(found.name): found.entries for found in region.resolve(model)}
    return [(m, entries[m.name]) for m in block_matrices(model) if m.name in entries]
