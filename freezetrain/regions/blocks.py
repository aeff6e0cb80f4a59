"""Where a language model keeps its decoder blocks, norms, embeddings and head; regions of them.

Everything is found by structure (lists of modules, class names, identity of tensors), never by a
parameter name fixed in advance, because every architecture names these parts differently.
"""

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.regions.base import Base, base_of
from freezetrain.regions.entries import Entries
from freezetrain.regions.parameters import full_shape, plain_name
from freezetrain.regions.region import Region

_PASS_PARAMETERS = "pass the wanted parameters by name instead"


def decoder_blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The decoder blocks of a causal language model, in order, with their full names.

    They are the elements of the ``nn.ModuleList`` that holds the most parameters, among the lists
    that are not inside another one (experts are) and whose elements share a class.

    Raises:
        UserError: no such list; an encoder-decoder; a second list of comparable size, so that the
            choice would be a guess (two towers, student and teacher).
    """
    name, blocks = _block_list(model)
    return [(plain_name(f"{name}.{index}"), block) for index, block in enumerate(blocks)]


def block_parameters(model: nn.Module, norms: bool = False) -> dict[str, nn.Parameter]:
    """The parameters of the decoder blocks by full name, each tensor once, in the model's order.

    Biases are in. Norms, any parameter of a module whose class name contains "norm", are in only
    when ``norms`` is true. Embeddings, the last norm and the output head are outside the blocks.

    Raises:
        UserError: as :func:`decoder_blocks`.
    """
    prefix = _block_list(model)[0] + "."
    return {
        plain_name(name): parameter
        for name, parameter in model.named_parameters()
        if name.startswith(prefix) and (norms or not is_norm(model, name))
    }


def outer_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is outside the decoder blocks: embeddings, the last norm, the output head.

    By full name, each tensor once, in the model's order. UserError as :func:`decoder_blocks`.
    """
    prefix = _block_list(model)[0] + "."
    return {
        plain_name(name): parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(prefix)
    }


def embedding_parameters(model: nn.Module) -> dict[str, str]:
    """Full names of the parameters with one row a token.

    ``"input"`` is the embedding [V, H]; ``"output"`` the head's weight [V, H], the same name when
    the two are tied; ``"bias"`` the head's bias [V], only where there is one (GPT-J, Phi).

    Raises:
        UserError: the model has no ``get_input_embeddings``/``get_output_embeddings`` of
            transformers, or one of them is None or holds no weight.
    """
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    embeddings = {}
    for side in ("input", "output"):
        getter = getattr(model, f"get_{side}_embeddings", None)
        module = getter() if getter is not None else None
        weight = getattr(module, "weight", None)
        if id(weight) not in names:
            raise UserError(
                f"expected a transformers causal language model whose get_{side}_embeddings() "
                f"returns a module with a weight, got {type(model).__name__}: pass the language "
                "model itself, without wrappers"
            )
        embeddings[side] = names[id(weight)]
    if id(bias := getattr(module, "bias", None)) in names:
        embeddings["bias"] = names[id(bias)]
    return embeddings


def layers_region(
    model: nn.Module,
    first: int = 0,
    last: int = 0,
    *,
    norms: bool = False,
    base: Base | None = None,
) -> Region:
    """All weights of the ``first`` and the ``last`` decoder blocks, biases too.

    ``norms``: with the parameters of their norms. Embeddings, the last norm and the output head
    belong to no block.

    Raises:
        UserError: no block wanted, more than the model has, or a model without decoder blocks.
    """
    blocks = [name for name, _ in decoder_blocks(model)]
    if min(first, last) < 0 or not 1 <= first + last <= len(blocks):
        raise UserError(
            f"expected 1 to {len(blocks)} decoder blocks in all, as many as the model has, got the "
            f"{first=} and the {last=}"
        )
    wanted = tuple(f"{name}." for name in [*blocks[:first], *blocks[len(blocks) - last :]])
    entries = {
        name: Entries.whole(full_shape(parameter))
        for name, parameter in block_parameters(model, norms=norms).items()
        if name.startswith(wanted)
    }
    made = {"operation": "layers", "first": first, "last": last, "norms": norms}
    return Region(entries, base, made)


def vocabulary_region(model: nn.Module, token_counts: Tensor, min_count: int) -> Region:
    """Rows of the input embedding and the output head for tokens (nearly) never seen.

    Training on one language pushes down the logits of all other languages' tokens; with these
    rows frozen (and the head's bias entries, where it has a bias) it cannot. Ours, not from a
    paper. A tied embedding and head are one tensor and appear once.

    Args:
        token_counts: integers [V], how often each token occurs in the target language's data.
            Rows beyond V, with which an embedding may be padded, count as never seen.
        min_count: 1 or more; 1 takes only tokens that never occur.

    Raises:
        UserError: counts that are no integers [V], negative, or more than the embedding's rows;
            ``min_count`` below 1; every token seen often enough; a model without embeddings.
    """
    names = embedding_parameters(model)
    rows = model.get_parameter(names["input"]).shape[0]
    if token_counts.ndim != 1 or token_counts.is_floating_point() or len(token_counts) > rows:
        raise UserError(
            f"expected token counts as integers [V] with V at most the embedding's {rows} rows, "
            f"got {token_counts.dtype} {list(token_counts.shape)}"
        )
    if min_count < 1 or bool((token_counts < 0).any()):
        raise UserError(
            f"expected min_count of 1 or more and no negative count, got {min_count=} and a "
            f"smallest count of {int(token_counts.min())}"
        )
    seen = torch.zeros(rows, dtype=torch.int64)
    seen[: len(token_counts)] = token_counts.cpu()
    rare = (seen < min_count).nonzero().flatten()
    if not len(rare):
        raise UserError(
            f"expected some token with fewer than {min_count} occurrences, the rarest has "
            f"{int(seen.min())}: raise min_count"
        )
    entries = {}
    for name in names.values():
        shape = model.get_parameter(name).shape
        if shape[0] != rows:
            raise UserError(
                f"expected {rows} rows, one a token, in {name!r} as in the input embedding, got "
                f"shape {list(shape)}"
            )
        take = Entries.from_rows if len(shape) > 1 else Entries.from_indices
        entries[name] = take(shape, rare)
    made = {
        "operation": "vocabulary",
        "min_count": min_count,
        "rows": len(rare),
        "tokens": int(seen.sum()),
    }
    return Region(entries, base_of(model), made)


def owner(model: nn.Module, name: str) -> nn.Module:
    """The module that holds the parameter ``name``."""
    return model.get_submodule(name.rpartition(".")[0])


def is_norm(model: nn.Module, name: str) -> bool:
    """Whether the parameter ``name`` belongs to a norm: its module's class name says so."""
    return "norm" in type(owner(model, name)).__name__.lower()


def input_dim(model: nn.Module, name: str) -> int:
    """The dimension of the weight matrix ``name`` that runs over input features: -1 or -2.

    ``nn.Linear`` stores [out, in]. transformers' ``Conv1D`` (GPT-2) and some fused experts store
    [in, out]: those marked ``is_transposed`` (GPT-OSS), and those whose ``gate_up_proj`` and
    ``down_proj`` have shapes that fit together only so (Llama 4). Leading dimensions count experts.
    """
    module = owner(model, name)
    if type(module).__name__ == "Conv1D" or getattr(module, "is_transposed", False):
        return -2
    return -2 if _experts_transposed(module) else -1


def selection_facts(model: nn.Module, names: Iterable[str]) -> dict[str, list[str]]:
    """What selecting from scores of the parameters ``names`` needs to know of them.

    ``norms``: those of norms; ``transposed``: weights stored as [in, out].
    """
    names = list(names)
    return {
        "norms": [name for name in names if is_norm(model, name)],
        "transposed": [name for name in names if input_dim(model, name) == -2],
    }


def _experts_transposed(module: nn.Module) -> bool:
    """Whether fused experts store gate and up [E, hidden, 2·inner] and down [E, inner, hidden]."""
    matrices = [getattr(module, leaf, None) for leaf in ("gate_up_proj", "down_proj")]
    shapes = [full_shape(matrix) for matrix in matrices if isinstance(matrix, nn.Parameter)]
    if list(map(len, shapes)) != [3, 3]:
        return False
    up, down = shapes
    return up[1] == down[2] and up[2] == 2 * down[1]


def _block_list(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list that holds the decoder blocks, with its full name."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise UserError(
            f"expected a decoder-only language model, got the encoder-decoder "
            f"{type(model).__name__}: {_PASS_PARAMETERS}"
        )
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in outermost)
        if isinstance(module, nn.ModuleList) and not inside:
            outermost[name] = module
    sizes = {
        name: sum(prod(full_shape(parameter)) for parameter in blocks.parameters())
        for name, blocks in outermost.items()
        if _one_family(blocks)
    }
    ranked = sorted((name for name in sizes if sizes[name]), key=lambda name: -sizes[name])
    if not ranked:
        raise UserError(
            f"expected a model with its decoder blocks in an nn.ModuleList, found none in "
            f"{type(model).__name__}: {_PASS_PARAMETERS}"
        )
    # Two towers of like size (an encoder and a decoder, a student and a teacher) leave no safe
    # choice; beside something much smaller (a vision tower, prediction heads) there is one.
    if len(ranked) > 1 and 2 * sizes[ranked[1]] > sizes[ranked[0]]:
        raise UserError(
            f"expected one list of decoder blocks, found {ranked[0]!r} and {ranked[1]!r} of like "
            f"size in {type(model).__name__}: pass the submodule that is the language model"
        )
    return ranked[0], outermost[ranked[0]]


def _one_family(blocks: nn.ModuleList) -> bool:
    """Whether all elements share a class, other than what every module shares."""
    lineages = [set(type(block).__mro__) for block in blocks]
    return bool(lineages) and bool(set.intersection(*lineages) - set(nn.Module.__mro__))
