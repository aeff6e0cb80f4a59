"""Matrices of the decoder blocks, and what reads from and writes to the residual stream."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.forward import without_cache
from freezetrain.regions.blocks import block_parameters, decoder_blocks, input_dim, is_norm
from freezetrain.regions.entries import Entries
from freezetrain.regions.parameters import match_parameters, plain_name
from freezetrain.regions.region import Region

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
    """Matrices of the decoder blocks, in the model's order; no biases, norms and convolutions.

    Raises:
        UserError: as :func:`decoder_blocks`.
    """
    blocks = {f"{block}.": number for number, (block, _) in enumerate(decoder_blocks(model))}
    matrices = []
    for name, parameter in block_parameters(model).items():
        owner, _, leaf = name.rpartition(".")
        convolves = isinstance(model.get_submodule(owner), nn.modules.conv._ConvNd)
        if parameter.ndim < 2 or leaf.endswith("bias") or convolves:
            continue
        block = next(block for block in blocks if name.startswith(block))
        kind = name.removeprefix(block).removesuffix(".weight")
        shape = tuple(parameter.shape)
        matrices.append(Matrix(name, kind, blocks[block], shape, input_dim(model, name)))
    return matrices


def matrix_entries(region: Region, model: nn.Module) -> list[tuple[Matrix, Entries]]:
    """The matrices of which the region has entries, with these.

    Raises:
        UserError: a region that does not fit the model, or as :func:`decoder_blocks`.
    """
    entries = {plain_name(item.name): item.entries for item in region.resolve(model)}
    return [
        (matrix, entries[matrix.name]) for matrix in block_matrices(model) if matrix.name in entries
    ]


def hidden_size(model: nn.Module) -> int:
    """Dimensions of the residual stream: as the configuration says, or the embedding's width.

    Raises:
        UserError: the model tells neither.
    """
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    if isinstance(size := getattr(config, "hidden_size", None), int):
        return size
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    if embeddings is None:
        raise UserError(
            f"expected a model whose configuration has a hidden_size, got {type(model).__name__}: "
            "pass a causal language model of transformers"
        )
    return int(embeddings.weight.shape[1])


def residual_directions(model: nn.Module) -> dict[str, Direction]:
    """Matrix name -> the direction that runs over dimensions of the residual stream.

    ``columns``: the matrix reads from the stream (attention's q, k and v, MLP up and gate).
    ``rows``: it writes to it (attention output, MLP down). A matrix with as many input or output
    features as the stream has dimensions tells so by its shape. A square one beside one that reads,
    in one module, writes (fused experts' down); another square one runs once: what is multiplied
    with the input of its block, or with the output of one of the block's own norms, reads; what is
    multiplied with anything else writes. Other matrices are left out.

    Raises:
        UserError: as :func:`hidden_size` and :func:`decoder_blocks`.
    """
    hidden = hidden_size(model)
    directions: dict[str, Direction] = {}
    square = []
    for matrix in block_matrices(model):
        reads = matrix.features("columns") == hidden
        writes = matrix.features("rows") == hidden
        if reads and writes:
            square.append(matrix)
        elif reads or writes:
            directions[matrix.name] = "columns" if reads else "rows"
    reading = {_module(name) for name, side in directions.items() if side == "columns"}
    to_be_run = []
    for matrix in square:
        if _module(matrix.name) in reading:
            directions[matrix.name] = "rows"
        else:
            to_be_run.append(matrix)
    return directions | _directions_by_running(model, to_be_run) if to_be_run else directions


def _module(name: str) -> str:
    """Full name of the module that holds the parameter ``name``."""
    return name.rpartition(".")[0]


@torch.no_grad()
def _directions_by_running(model: nn.Module, square: Sequence[Matrix]) -> dict[str, Direction]:
    """Run the model on two tokens to see what each square matrix is multiplied with."""
    stream: list[Tensor] = []  # kept, so that no other tensor gets the memory of one of them
    directions: dict[str, Direction] = {}

    def keep(tensors: Any) -> None:
        tensor = tensors[0] if isinstance(tensors, tuple) else tensors
        if isinstance(tensor, Tensor):
            stream.append(tensor)

    def into_block(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        keep(inputs if inputs else options.get("hidden_states"))

    def out_of_norm(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        keep(output)

    def into_matrix(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            place = inputs[0].untyped_storage().data_ptr()  # the same for a view
            reads = any(kept.untyped_storage().data_ptr() == place for kept in stream)
            directions[name] = "columns" if reads else "rows"

        return hook

    with ExitStack() as stack:
        for _, block in decoder_blocks(model):
            before = block.register_forward_pre_hook(into_block, with_kwargs=True)
            stack.callback(before.remove)
            for module in block.children():  # not norms of queries, keys or heads
                if "norm" in type(module).__name__.lower():
                    stack.callback(module.register_forward_hook(out_of_norm).remove)
        for matrix in square:
            layer = model.get_submodule(_module(matrix.name))
            stack.callback(layer.register_forward_pre_hook(into_matrix(matrix.name)).remove)
        device = next(model.parameters()).device
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        model(input_ids=ids, **without_cache(model))
    return directions


def weights_of_dimension(
    model: nn.Module, dimension: int, patterns: Sequence[str] | None = None
) -> Region:
    """All that reads from, writes to or scales one dimension of the residual stream.

    In the decoder blocks: that column or row of the matrices (see :func:`residual_directions`; in
    all experts), that entry of norms as wide as the stream, and of the biases of what writes to
    it. ``patterns``: names or glob patterns of the parameters that count; None = all.

    Raises:
        UserError: a dimension that the stream does not have; a pattern that matches nothing, or
            only parameters without that dimension.
    """
    hidden = hidden_size(model)
    if not 0 <= dimension < hidden:
        raise UserError(f"expected a dimension from 0 to {hidden - 1}, got {dimension}")
    directions = residual_directions(model)
    matrices = {matrix.name: matrix for matrix in block_matrices(model)}
    wanted = match_parameters(model, patterns)
    entries = {}
    for name, parameter in block_parameters(model, norms=True).items():
        if name not in wanted:
            continue
        if name in directions:
            matrix, direction = matrices[name], directions[name]
            experts = matrix.shape[0] if len(matrix.shape) > 2 else 1
            places = [expert * hidden + dimension for expert in range(experts)]
            entries[name] = matrix.whole(direction, places)
        elif parameter.shape == (hidden,):
            weight = name.removesuffix("bias") + "weight"
            if is_norm(model, name) or directions.get(weight) == "rows":
                entries[name] = Entries.from_indices((hidden,), [dimension])
        elif directions.get(name.removesuffix("_bias")) == "rows":  # of fused experts, [E, hidden]
            entries[name] = Entries.from_columns(parameter.shape, [dimension])
    if not entries:
        raise UserError(
            f"none of the parameters named by {list(patterns or [])} has dimension {dimension} of "
            "the residual stream; name norms or matrices of the decoder blocks"
        )
    return Region(entries, made={"operation": "dimension", "dimension": dimension})
