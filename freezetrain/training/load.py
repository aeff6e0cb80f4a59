"""Load the model that is trained as its engine wants it: whole, or split over ranks at once."""

from typing import Any

import lightning as L
from transformers import PreTrainedModel

from freezetrain.models import load_model
from freezetrain.recipe import TrainRecipe
from freezetrain.training.adapters import add_adapters
from freezetrain.training.module import Load
from freezetrain.training.sharded import load_partitioned, load_sharded
from freezetrain.training.strategies import policy, trained_in_16_bits


def loader(recipe: TrainRecipe, kind: str) -> PreTrainedModel | Load:
    """The model, or for zero-3 and fsdp2 what loads it on each rank once the ranks have started."""
    source, random = recipe.model, recipe.from_scratch
    in_16_bits = trained_in_16_bits(recipe.optimization)

    def prepare(model: PreTrainedModel) -> PreTrainedModel:
        if recipe.lora is not None:
            add_adapters(model, recipe.lora, recipe.optimization.seed)
        if recipe.engine.gradient_checkpointing:
            # Another name since transformers 5.23, which warns of the older one.
            name = "activation_checkpointing_enable"
            enable = getattr(model, name, model.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        return model

    def partitioned(module: L.LightningModule) -> PreTrainedModel:
        strategy: Any = module.trainer.strategy
        strategy._init_config_if_needed()  # batch size and precision follow from the trainer
        return prepare(load_partitioned(source, strategy.config, random, in_16_bits))

    def sharded(module: L.LightningModule) -> PreTrainedModel:
        assert module.device_mesh is not None
        return load_sharded(
            source,
            module.device_mesh["data_parallel"],
            module.trainer.strategy.root_device,
            prepare=prepare,
            policy=policy(recipe.optimization),
            random_weights=random,
            in_16_bits=in_16_bits,
        )

    if kind == "zero-3":
        return partitioned
    if kind == "fsdp2":
        return sharded
    return prepare(load_model(source, random, in_16_bits))
