"""Whether activations are computed again in the backward pass, where the recipe leaves it open."""

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from freezetrain.files import readable
from freezetrain.ranks import Launch
from freezetrain.regions import Region
from freezetrain.training.engines import precision
from freezetrain.training.memory import estimate, memory_there
from freezetrain.training.recipe import TrainRecipe

# Of a device's memory: beside the estimate a GPU has its context and what the allocator leaves
# unused; a CPU's memory is also that of the system, of files that are read, and of other programs.
_SHARE_OF_GPU, _SHARE_OF_CPU = 0.9, 1 / 3


@dataclass(frozen=True)
class Recomputation:
    """What was decided, and why."""

    on: bool
    peak: int
    """Bytes that a rank would take without, as estimated."""
    room: int
    """Bytes that it may take."""

    def said(self) -> str:
        """In words."""
        state = "on" if self.on else "off"
        return f"{state}: {readable(self.peak)} without, of {readable(self.room)} for a rank"


def decide(
    recipe: TrainRecipe,
    model: PreTrainedModel,
    launch: Launch,
    world: int,
    region: Region | None,
    pulled: list[Region],
    stored: torch.dtype | None,
) -> tuple[TrainRecipe, Recomputation | None]:
    """``recipe`` with engine.gradient_checkpointing said, and how that was decided.

    It is on where without it a rank would take more than nine tenths of its GPU's memory, or, of
    a machine without GPUs, more than a third of the memory shared among its ranks. Bits do not
    depend on it. None: the recipe said it, the model cannot do it, or bfloat16 says that it is for
    a GPU and none is here.
    """
    on_gpu = torch.cuda.is_available()
    said = recipe.engine.gradient_checkpointing is not None
    elsewhere = not on_gpu and precision(recipe.optimization).startswith("bf16")
    if said or elsewhere or not model.supports_gradient_checkpointing:
        return recipe, None
    ranks = 1 if on_gpu else max(1, world // launch.nodes)
    room = int(memory_there() * (_SHARE_OF_GPU if on_gpu else _SHARE_OF_CPU / ranks))
    peak = estimate(model, recipe, world, region, on_gpu, pulled=pulled, stored=stored).peak
    decided = Recomputation(peak > room, peak, room)
    engine = replace(recipe.engine, gradient_checkpointing=decided.on)
    return replace(recipe, engine=engine), decided
