"""What a forward pass keeps for the backward pass: counted on a model without weights.

The model's own forward runs on the meta device, so that every architecture is counted as it is
written; no formula is fitted to one of them. For GPT-2 it comes near the formula of Korthikanti et
al., "Reducing Activation Recomputation in Large Transformer Models", arXiv 2205.05198, equation 2.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from freezetrain.head.find import Head
from freezetrain.head.inside import inside
from freezetrain.nll import next_token_nll
from freezetrain.regions import decoder_blocks
from freezetrain.training.checkpointed import recomputed


@dataclass(frozen=True)
class Activations:
    """Bytes that one micro-batch keeps on one rank."""

    blocks: tuple[int, ...]
    """Of each decoder block; what several of them share is counted with the first."""
    inputs: tuple[int, ...]
    """Input of each decoder block: what is kept of one that is computed again."""
    outside: int
    """Outside of the blocks: embedding, last norm, head and loss."""

    def of_inputs(self, every: bool | int | None) -> int:
        """Inputs of the blocks that are computed again: ``every`` n-th, True for all."""
        again = recomputed(len(self.blocks), every)
        return sum(size for size, chosen in zip(self.inputs, again, strict=True) if chosen)

    def of_blocks(self, every: bool | int | None) -> int:
        """What all blocks keep for the backward pass, ``every`` n-th its input alone."""
        again = recomputed(len(self.blocks), every)
        rest = (size for size, chosen in zip(self.blocks, again, strict=True) if not chosen)
        return self.of_inputs(every) + sum(rest)

    def kept(self, every: bool | int | None) -> int:
        """What is alive when the backward pass begins, without the logits' gradients."""
        return self.of_blocks(every) + self.outside


def count_activations(
    model: PreTrainedModel,
    batch: int,
    sequence_length: int,
    dtype: torch.dtype = torch.float32,
    autocast: bool = False,
    whole_logits: bool = True,
) -> Activations:
    """Count for ``batch`` sequences through ``model``, which is on the meta device.

    ``dtype``: of the weights as they are computed with. ``autocast``: weights in fp32, computed
    with in bfloat16, whose copies of the weights are counted too. ``whole_logits``: of all places
    at once, and their loss; else what the head is given counts alone: as much as the gradient that
    is kept of it.
    """
    model = copy.deepcopy(model).train()
    nn.Module.to(model, torch.float32 if autocast else dtype)
    if "flash" in str(model.config._attn_implementation):
        model.set_attn_implementation("sdpa")  # which keeps the same, and knows the device
    counter = _Counter(tensor for tensor in (*model.parameters(), *model.buffers()))
    marks: list[int] = []
    inputs: list[int] = []

    def before(_: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inputs.append((args[0] if args else kwargs["hidden_states"]).nbytes)
        marks.append(counter.total)

    blocks = [block for _, block in decoder_blocks(model)]
    for block in blocks:
        block.register_forward_pre_hook(before, with_kwargs=True)
        block.register_forward_hook(lambda *_: marks.append(counter.total))
    ids = torch.zeros(batch, sequence_length, dtype=torch.long, device="meta")
    with _Ordinary(autocast), torch.autograd.graph.saved_tensors_hooks(counter.pack, _unpacked):
        if whole_logits:
            loss = next_token_nll(model(input_ids=ids, use_cache=False).logits, ids).sum()
        else:
            with inside(Head(model.get_output_embeddings()), _squared) as losses:
                model(input_ids=ids, use_cache=False)
            (loss,) = losses
    sizes = [after - start for start, after in zip(marks[::2], marks[1::2], strict=True)]
    total = counter.total
    del loss  # until here its graph keeps what was counted, so that no storage is counted twice
    return Activations(tuple(sizes), tuple(inputs), total - sum(sizes))


def _squared(hidden: Tensor) -> Tensor:
    return hidden.square().sum()


def _unpacked(tensor: Tensor) -> Tensor:
    return tensor


class _Counter:
    """Adds up the storages that autograd saves, each once, other than weights and buffers."""

    def __init__(self, known: Any) -> None:
        self.total = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self.total += storage.nbytes()
        return tensor


_MULTIPLIED = {F.linear, torch.matmul, torch.bmm, torch.addmm, torch.baddbmm, Tensor.matmul}


class _Ordinary(TorchFunctionMode):
    """Lets a model run on the meta device as it would on a GPU.

    Meta tensors hold no values: a question about them is answered as for one document without
    padding. Fused attention keeps its inputs, its output and one number a row, where the meta
    device would compute all weights. ``autocast`` casts what torch.autocast does, which does not
    know the device.
    """

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        self._autocast = autocast
        self._cast: dict[int, Tensor] = {}  # weights are cast once a forward pass

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__bool__:
            return True
        if function is F.scaled_dot_product_attention:
            return _FusedAttention.apply(*(self._lower(value) for value in args[:3]))
        if function is getattr(torch, "_grouped_mm", None):
            return _GroupedProduct.apply(*(self._lower(value) for value in args[:2]))
        if self._autocast and function in _MULTIPLIED:
            args = [self._lower(value) for value in args]
        return function(*args, **(kwargs or {}))

    def _lower(self, value: Any) -> Any:
        if not (self._autocast and isinstance(value, Tensor) and value.is_floating_point()):
            return value
        if not value.is_leaf:
            return value.to(torch.bfloat16)
        if id(value) not in self._cast:
            self._cast[id(value)] = value.to(torch.bfloat16)
        return self._cast[id(value)]


class _GroupedProduct(torch.autograd.Function):
    """Rows of each expert times its matrix; the meta device knows it in bfloat16 only."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, matrices: Tensor) -> Tensor:
        ctx.save_for_backward(rows, matrices)
        return rows.new_empty((rows.shape[0], matrices.shape[-1]))


class _FusedAttention(torch.autograd.Function):
    """What FlashAttention-2 keeps (Dao, arXiv 2307.08691): q, k, v, output and log-sum-exp."""

    @staticmethod
    def forward(ctx: FunctionCtx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch, heads, length, _ = query.shape
        # As the kernels lay it out, so that merging the heads makes no copy.
        output = query.new_empty((batch, length, heads, value.shape[-1])).transpose(1, 2)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output
