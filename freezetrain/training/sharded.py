"""Loads the model to be trained: whole, or split over the ranks tensor by tensor."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations import HfDeepSpeedConfig

from freezetrain.errors import UserError, near_misses
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.models import checked, load_model, meta_model
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import decoder_blocks
from freezetrain.training.adapters import add_adapters
from freezetrain.training.checkpointed import checkpoint_blocks
from freezetrain.training.compiled import compile_blocks
from freezetrain.training.engines import policy, precision, trained_in_16_bits
from freezetrain.training.module import Load
from freezetrain.training.recipe import TrainRecipe


def load_partitioned(
    source: ModelSource,
    deepspeed_config: dict[str, Any],
    random_weights: bool = False,
    in_16_bits: bool | None = None,
) -> PreTrainedModel:
    """The model for ZeRO-3, each weight partitioned as soon as it is made; every rank calls this.

    Rank 0 reads the files, which it maps into memory rather than copies. With ``bf16`` enabled in
    ``deepspeed_config`` DeepSpeed holds the weights in bfloat16, whatever ``source`` says. Raises
    UserError as load_model does.
    """
    described = checked(source, random_weights, in_16_bits)
    # transformers keeps a weak reference: what is loaded later in this process is whole again.
    partitions = HfDeepSpeedConfig(deepspeed_config)
    try:
        return load_model(source, random_weights, in_16_bits, described)
    finally:
        del partitions


def load_sharded(
    source: ModelSource,
    mesh: DeviceMesh,
    device: torch.device,
    *,
    prepare: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model,
    policy: MixedPrecisionPolicy | None = None,
    random_weights: bool = False,
    in_16_bits: bool | None = None,
) -> PreTrainedModel:
    """The model under FSDP2 over ``mesh``, each decoder block a group; every rank calls this.

    It is made without memory, prepared by ``prepare``, sharded, and each rank then reads its own
    rows of each tensor from the safetensors files. Random weights are made block by block.

    Raises UserError as load_model does, and for a model whose files hold other tensors than it has
    in memory (fused experts), which cannot be read in part.
    """
    folder = checked(
        source, random_weights, in_16_bits
    ).files  # fetched, for the next line to look at
    model = prepare(meta_model(source, in_16_bits, random_weights))
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy or MixedPrecisionPolicy()}
    if random_weights:
        folder = None
    if folder is not None:
        stored = _stored_names(model, folder)
    for part in [*(block for _, block in decoder_blocks(model)), model]:
        if folder is None:
            _initialize(model, part, device)
        fully_shard(part, **options)
    if folder is not None:
        model.to_empty(device=device)
        for name, tensor in model.state_dict(keep_vars=True).items():
            if name in stored:  # others are tied to one that is
                _read(tensor, folder, stored[name])
            tensor._is_hf_initialized = True  # transformers leaves it alone
        model.initialize_weights()  # what files do not hold: the frequencies of rotary positions
    return model.eval()


def _stored_names(model: PreTrainedModel, folder: WeightsFolder) -> dict[str, str]:
    """Name in the model -> name in the files, of each tensor that they should hold."""
    state = model.state_dict(keep_vars=True)
    wanted = {name: t for name, t in state.items() if name not in model.all_tied_weights_keys}
    converted = revert_weight_conversion(model, dict(wanted))
    if {n: t.shape for n, t in converted.items()} != {n: t.shape for n, t in wanted.items()}:
        raise UserError(
            f"the files of {folder.path} hold other tensors than {type(model).__name__} has in "
            "memory (fused experts, for one), which fsdp2 cannot read in part; use engine.kind "
            "zero-3"
        )
    names = {}
    for name, tensor in wanted.items():
        # The files of a base model, without a head, lack the name of the part that they are of.
        for stored in (name, name.removeprefix(model.base_model_prefix + ".")):
            if stored in folder:
                names[name] = stored
                break
        else:
            raise UserError(
                f"the files of {folder.path} lack weights of the model, first {name!r}"
                f"{near_misses(name, folder)}; give a complete model"
            )
        if folder.shape(names[name]) != tuple(tensor.shape):
            raise UserError(
                f"the files of {folder.path} hold {names[name]!r} of shape "
                f"{list(folder.shape(names[name]))} and its config.json says "
                f"{list(tensor.shape)}; give a complete model"
            )
    return names


def _read(tensor: Tensor, folder: WeightsFolder, name: str) -> None:
    """Fill the rows of ``tensor`` that this rank holds."""
    with torch.no_grad():
        if not isinstance(tensor, DTensor):
            tensor.copy_(folder[name])
            return
        shape, offset = compute_local_shape_and_global_offset(
            tensor.shape, tensor.device_mesh, tensor.placements
        )
        if shape[0]:  # the last ranks may hold none
            tensor.to_local().copy_(folder.rows(name, offset[0], offset[0] + shape[0]))


def _initialize(model: PreTrainedModel, part: nn.Module, device: torch.device) -> None:
    """Give memory and random values to what of ``part`` is not sharded yet."""
    sharded = {
        id(below)
        for module in part.modules()
        if isinstance(module, FSDPModule)
        for below in module.modules()
    }
    new = [module for module in part.modules() if id(module) not in sharded]
    for module in new:
        module.to_empty(device=device, recurse=False)
    model.tie_weights()
    for module in reversed(new):  # children first, as transformers does: some parents scale them
        if sharded.isdisjoint(id(below) for below in module.modules()):
            model._init_weights(module)


def loader(recipe: TrainRecipe, kind: str) -> PreTrainedModel | Load:
    """The model, or for zero-3 and fsdp2 what loads it on each rank once the ranks have started."""
    source, random = recipe.model, recipe.from_scratch
    in_16_bits = trained_in_16_bits(recipe.optimization)

    def prepare(model: PreTrainedModel) -> PreTrainedModel:
        if recipe.lora is not None:
            add_adapters(model, recipe.lora, recipe.optimization.seed)
        if recipe.engine.gradient_checkpointing:
            checkpoint_blocks(model, recipe.engine.gradient_checkpointing)
        if recipe.engine.compile:
            compile_blocks(model)
        return model

    def partitioned(module: L.LightningModule) -> PreTrainedModel:
        strategy: Any = module.trainer.strategy
        strategy._init_config_if_needed()  # batch size and precision follow from the trainer
        return prepare(load_partitioned(source, strategy.config, random, in_16_bits))

    def sharded(module: L.LightningModule) -> PreTrainedModel:
        device = module.trainer.strategy.root_device
        return load_sharded(
            source,
            _mesh(device, module.trainer.world_size, recipe.engine.replicas),
            device,
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


def _mesh(device: torch.device, world: int, replicas: int) -> DeviceMesh:
    """Ranks that weights are split over, in a row; of several rows each holds all."""
    if replicas == 1:
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    names = ("replicate", "shard")
    return init_device_mesh(device.type, (replicas, world // replicas), mesh_dim_names=names)


def teacher_of(recipe: TrainRecipe) -> PreTrainedModel | None:
    """The base that rehearsal compares with, where it is kept in memory beside the model."""
    if recipe.rehearse is None or recipe.rehearse.teacher == "stored":
        return None
    base = load_model(recipe.model, in_16_bits=trained_in_16_bits(recipe.optimization))
    if precision(recipe.optimization) == "bf16-true":
        nn.Module.to(base, torch.bfloat16)
    return base.requires_grad_(False)
