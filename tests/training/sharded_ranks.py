"""What the ranks of test_sharded.py do, in a folder that holds folders of models."""

from collections.abc import Callable
from pathlib import Path

import deepspeed
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, PreTrainedModel

from freezetrain.errors import UserError
from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.models import load_model
from freezetrain.recipe.sources import ModelSource
from freezetrain.training.export import export
from freezetrain.training.sharded import load_partitioned, load_sharded

ZERO = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "zero_allow_untested_optimizer": True,
}
ZERO_MODELS = [
    "model-tied-in-files", "model-gpt2", "model-experts-in-files", "model-two-heads",
]  # fmt: skip
READ: list[int] = []  # entries of each read of rows


def counted(rows: Callable) -> Callable:
    def reads(*args: object) -> torch.Tensor:
        value = rows(*args)
        READ.append(value.numel())
        return value

    return reads


def alike(model: PreTrainedModel) -> bool:
    """Whether embedding and head are one parameter, as config.json says."""
    head = model.get_output_embeddings().weight
    return (head is model.get_input_embeddings().weight) == model.config.tie_word_embeddings


def trains(model: PreTrainedModel) -> PreTrainedModel:
    READ.clear()  # head and embedding may have been compared
    return model.train()


def fsdp(rank: int, world: int, folder: Path, names: list[str]) -> None:
    mesh, device = init_device_mesh("cpu", (world,)), torch.device("cpu")
    WeightsFolder.rows = counted(WeightsFolder.rows)
    WeightsFolder.__getitem__ = None  # nothing is read whole
    for place in (folder / f"model-{name}" for name in names):
        source = ModelSource(str(place))
        try:
            model = load_sharded(source, mesh, device, prepare=trains)
        except UserError as error:
            (folder / f"fsdp-{place.name}.{rank}").write_text(str(error))
            continue
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        assert sum(READ) == sum(parameter.to_local().numel() for parameter in model.parameters())
        assert alike(model.to("cpu"))
        finish(model, folder, f"fsdp-{place.name}", rank)
    for place in sorted(folder.glob("random-*")):
        torch.manual_seed(0)
        model = load_sharded(ModelSource(str(place)), mesh, device, random_weights=True)
        assert alike(model)
        finish(model, folder, f"fsdp-{place.name}", rank)


def zero(rank: int, world: int, folder: Path) -> None:
    deepspeed.init_distributed("gloo", verbose=False)
    names = [*ZERO_MODELS, "model-headless", "model-lacking", "random-tied"]
    for place in (folder / name for name in names):
        random, source = place.name.startswith("random"), ModelSource(str(place))
        try:
            model = load_partitioned(source, ZERO, random)
        except UserError as error:
            (folder / f"zero-{place.name}.{rank}").write_text(str(error))
            continue
        assert alike(model)
        for parameter in model.parameters():
            assert parameter.numel() == 0
            assert parameter.ds_tensor.numel() == -(-parameter.ds_numel // world)
        export(model, tokenizer(folder), folder / f"zero-{place.name}", 20_000)
        whole = load_model(source, random)  # what is loaded after is whole again
        assert not any(hasattr(parameter, "ds_id") for parameter in whole.parameters())


def tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder / "model-llama")


def finish(model: PreTrainedModel, folder: Path, name: str, rank: int) -> None:
    """Its logits and, twice, its export: before and after a pass that leaves weights gathered."""
    export(model, tokenizer(folder), folder / name, 20_000)
    with torch.no_grad():
        logits = model(torch.arange(30)[None]).logits
    if not rank:
        torch.save(logits, folder / f"{name}.pt")
    export(model, tokenizer(folder), folder / f"{name}-again")
    with pytest.raises(UserError, match="exists already"):  # on every rank
        export(model, tokenizer(folder), folder / name)
    dist.barrier()
