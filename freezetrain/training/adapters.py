"""Low-rank adapters of linear layers, by PEFT, and the plain model that they make."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from freezetrain.callbacks.near_base import wide
from freezetrain.errors import UserError, near_misses
from freezetrain.extras import imported_for
from freezetrain.regions import decoder_blocks
from freezetrain.training.recipe import Lora


def add_adapters(model: PreTrainedModel, lora: Lora, seed: int) -> None:
    """Give linear layers of ``model`` adapters, as Hu et al. 2021 (arXiv 2106.09685), in place.

    They alone are trainable. A is drawn by ``seed``, B is zero, so that the model computes what it
    did. UserError where PEFT is not installed, the rank is larger than any layer, or a name of
    ``lora.targets`` fits no linear layer of the decoder blocks.
    """
    with imported_for("lora", "lora", ", or leave lora out"):
        from peft import LoraConfig, inject_adapter_in_model
    layers = _linear_layers(model)
    names = _targets(layers, lora.targets)
    _check_rank(lora.rank, [layers[name] for name in names])
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale * lora.rank,  # type: ignore[arg-type]
        lora_dropout=lora.dropout,
        target_modules=names,
        fan_in_fan_out=not isinstance(layers[names[0]], nn.Linear),  # Conv1D stores [in, out]
    )
    empty = next(model.parameters()).is_meta
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, low_cpu_mem_usage=empty)


def _linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Those of the decoder blocks, by full name."""
    return {
        f"{block}.{name}": module
        for block, inside in decoder_blocks(model)
        for name, module in inside.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }


def _check_rank(rank: int, layers: Sequence[nn.Module]) -> None:
    """UserError for more rows than any of the layers has inputs or outputs."""
    largest = max(side for layer in layers for side in layer.get_parameter("weight").shape)
    if rank > largest:
        raise UserError(
            f"lora.rank is {rank} and the largest side of a layer is {largest}; use {largest} or "
            "less"
        )


def _targets(layers: dict[str, nn.Module], targets: list[str]) -> list[str]:
    """Full names of the layers that ``targets`` means (all: none given), in the model's order."""
    if not layers:
        raise UserError("lora found no linear layer in the model's decoder blocks; leave it out")
    chosen = set()
    for target in targets:
        fitting = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not fitting:
            known = {".".join(name.split(".")[-parts:]) for name in layers for parts in (1, 2)}
            raise UserError(
                f"lora.targets has {target!r}, with which no linear layer of the decoder blocks "
                f"ends{near_misses(target, known)}"
            )
        chosen.update(fitting)
    return [name for name in layers if name in chosen or not targets]


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Here ``model`` is plain: W + alpha / rank · B A in the place of each layer with an adapter.

    The sum is made in fp32 and rounded once to W's type. Afterwards the adapters are there again
    and every weight has its bits back. A model without adapters stays as it is.
    """
    adapted: dict[str, Any] = {name: m for name, m in model.named_modules() if hasattr(m, "lora_A")}
    kept: dict[str, Tensor] = {}
    try:
        for name, layer in adapted.items():
            kept[name] = layer.base_layer.weight.detach().to("cpu", copy=True)
            with torch.no_grad():
                layer.base_layer.weight.copy_(_summed(layer))
            _put(model, name, layer.base_layer)
        yield
    finally:
        for name, values in kept.items():
            layer = adapted[name]
            with torch.no_grad():
                layer.base_layer.weight.copy_(values)
            _put(model, name, layer)


def _summed(layer: Any) -> Tensor:
    """W + alpha / rank · B A in fp32; PEFT's own product is rounded to the adapters' type."""
    b, a = (wide(getattr(layer, part)["default"].weight) for part in ("lora_B", "lora_A"))
    product = b @ a * layer.scaling["default"]
    return wide(layer.base_layer.weight) + (product.T if layer.fan_in_fan_out else product)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent)._modules[leaf] = module
