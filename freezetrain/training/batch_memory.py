"""Memory of a micro-batch, of its loss, and of a batch of the evaluation."""

import math
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from freezetrain.head.chunks import places_at_once
from freezetrain.head.find import plain_head
from freezetrain.recipe.optimization import Optimization
from freezetrain.training.activations import count_activations
from freezetrain.training.memory_parts import PASS, Part, Shapes
from freezetrain.training.recipe import TrainRecipe


def batch_parts(
    shapes: Shapes, model: PreTrainedModel, recipe: TrainRecipe, on_gpu: bool
) -> list[Part]:
    """What a micro-batch takes, and a batch of the evaluation."""
    settings, every = recipe.optimization, recipe.engine.gradient_checkpointing
    layer = plain_head(model)
    whole = layer is None
    kept = count_activations(
        model,
        settings.micro_batch,
        settings.sequence_length,
        torch.bfloat16 if shapes.computed == 2 else torch.float32,
        shapes.autocast,
        whole,
    )
    block = max(kept.blocks) + kept.of_inputs(every)
    parts = [
        Part("activations of the blocks", kept.of_blocks(every), ("forward", "loss")),
        Part("activations outside of them", kept.outside, ("forward", "loss")),
        *(_whole_logits(shapes, model, settings) if whole else ()),
        *(_chunks(shapes, layer, settings, on_gpu) if layer is not None and not whole else ()),
        Part("activations of a block, in its backward pass", block, ("backward",)),
        *_tied(shapes, model, layer, block),
    ]
    if settings.document_mask:
        parts.append(Part("document mask", _mask(settings, shapes), PASS))
    if not recipe.watch.off:
        rows, places = vocabulary(model), recipe.watch.batch_tokens
        if layer is None:
            evaluated = places * rows * (8 + (2 if shapes.in_16_bits else 0))
        else:  # log-probabilities beside the logits
            evaluated = 2 * 4 * rows * min(places, _at_once(rows, on_gpu))
        parts.append(Part("logits of the evaluation", evaluated, ("watch",)))
    return parts


def rehearsal_parts(
    shapes: Shapes, model: PreTrainedModel, recipe: TrainRecipe, on_gpu: bool
) -> list[Part]:
    """What KL to the base takes, of as many sequences as a micro-batch has at most."""
    settings, rehearse, rows = recipe.optimization, recipe.rehearse, vocabulary(model)
    assert rehearse is not None
    most = min(settings.micro_batch, math.ceil(rehearse.share * settings.micro_batch) + 1)
    compared = most * settings.sequence_length
    with_base = rehearse.teacher == "model"
    if (layer := plain_head(model)) is not None:
        # The rest without the k, its logarithms, and what a place gives within the rest; of the
        # whole vocabulary logits and log-probabilities of the base, and what becomes of them.
        at_once = min(compared, _at_once(rows, on_gpu)) * rows
        kl = Part("KL, some places at a time", 2 * 4 * at_once, ("forward",))
        if not with_base:
            return [kl]
        states = compared * layer.in_features * shapes.computed
        base = Part("the base, which is compared with", shapes.held * shapes.weights)
        return [kl, base, Part("hidden states of the base", states, ("forward",))]
    whole = settings.micro_batch * settings.sequence_length * rows
    size = 2 if shapes.in_16_bits else 4
    parts = [
        Part("logits of the rehearsed places", compared * rows * size, ("forward",)),
        Part("gradients of the logits, of KL", whole * size, ("loss",)),
    ]
    if not with_base:
        at_once = min(compared, _at_once(rows, on_gpu)) * rows
        copies = 3 if shapes.in_16_bits else 2  # 16 bits are widened first
        return [*parts, Part("KL, some places at a time", copies * 4 * at_once, ("forward",))]
    # All logits of the base, and then log-probabilities of both and KL, of the places alone.
    largest = max(whole * size, 3 * 4 * compared * rows)
    return [
        *parts,
        Part("the base, which is compared with", shapes.held * shapes.weights),
        Part("logits of the base, or KL", largest, ("forward",)),
    ]


def vocabulary(model: PreTrainedModel) -> int:
    """Tokens that ``model`` has logits of."""
    return int(model.config.get_text_config().vocab_size)


def _at_once(rows: int, on_gpu: bool) -> int:
    return places_at_once(rows, torch.device("cuda" if on_gpu else "cpu"))


def _whole_logits(shapes: Shapes, model: PreTrainedModel, settings: Optimization) -> list[Part]:
    # Gradients of the loss with regard to log-probabilities and logits are fp32; 16-bit logits
    # have another of their own.
    logits = settings.micro_batch * settings.sequence_length * vocabulary(model)
    in_16_bits = 2 if shapes.in_16_bits else 0
    return [
        Part("logits", logits * (4 + in_16_bits), ("forward",)),
        Part("gradients of the logits", logits * (8 + in_16_bits), ("loss",)),
    ]


def _chunks(shapes: Shapes, layer: nn.Linear, settings: Optimization, on_gpu: bool) -> list[Part]:
    """Logits and log-probabilities of some places, and the head's own gradient, fp32."""
    rows, weights = layer.out_features, layer.weight.numel()
    places = settings.micro_batch * settings.sequence_length
    at_once = min(places, _at_once(rows, on_gpu))
    in_16_bits = 2 if shapes.in_16_bits else 0  # another gradient of the logits, and their copy
    parts = [
        Part("logits, some places at a time", at_once * rows * (8 + 2 * in_16_bits), ("forward",))
    ]
    if shapes.autocast:
        parts.append(Part("the head's weights in 16 bits", 2 * weights, ("forward",)))
    if layer.weight.requires_grad:
        narrow = in_16_bits * weights if shapes.computed == shapes.held else 0
        parts.append(Part("gradient of the head, fp32", 4 * weights, ("forward", "loss")))
        parts.append(Part("gradient of the head, as the weights are", narrow, ("loss",)))
    return parts


def _tied(
    shapes: Shapes, model: PreTrainedModel, layer: nn.Linear | None, block: float
) -> list[Part]:
    """The embedding's own gradient, before it is added to that of the head that it is tied to.

    It is made when all blocks are done, whose activations, ``block`` bytes, are counted beside it.
    """
    weight: Any = getattr(model.get_input_embeddings(), "weight", None)
    if layer is None or weight is not layer.weight or not weight.requires_grad:
        return []
    # One process makes none, see head.tied; where gradients are accumulated, the head's waits too.
    added = shapes.held * weight.numel() * ((shapes.kind != "one") + shapes.accumulates)
    more = max(0.0, added - block)
    return [Part("gradient of the embedding, tied to the head", more, ("backward",))]


def _mask(settings: Optimization, shapes: Shapes) -> int:
    """As booleans, and as what is added to the attention's logits."""
    return settings.micro_batch * settings.sequence_length**2 * (1 + shapes.computed)
