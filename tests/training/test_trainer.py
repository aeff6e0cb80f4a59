"""Runs that are killed: what goes on from the last checkpoint is the uninterrupted run, exactly."""

import os
import signal
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from forked_ranks import RanksError, run_ranks
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from freezetrain.callbacks import RegionFreeze
from freezetrain.data.packing import Packed
from freezetrain.data.tokens import tokenize
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import TextSource
from freezetrain.regions import Region
from freezetrain.training.checkpoints import latest_checkpoint
from freezetrain.training.data import TextData
from freezetrain.training.export import export
from freezetrain.training.trainer import fit

STEPS, ACCUMULATE = 12, 2


class Batches(L.Callback):
    """Notes the batches that were trained on; kills the process at the end of one."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at = kill_at
        self.seen: list[int] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append(batch_idx)
        if batch_idx == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)


def train(rank: int, world: int, folder: Path, base: Path, kill_at: int | None) -> list[int]:
    """Train a GPT-2 with dropout and a frozen region, saved at each step; the batches of it."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=64)
    )
    assert model.config.resid_pdrop > 0
    tokenizer = AutoTokenizer.from_pretrained(base)
    settings = Optimization(
        max_steps=STEPS, sequence_length=16, micro_batch=2, batch_tokens=64,
        learning_rate=1e-2, warmup_steps=2, weight_decay=0.1,
    )  # fmt: skip
    freeze = RegionFreeze(Region.random(model, 0.1, seed=3), check_base=False)
    store = tokenize(TextSource(), "zh", tokenizer, folder / "cache", workers=1)
    data = TextData({"zh": Packed(store, 16)}, settings)
    batches = Batches(kill_at)
    fit(model, data, folder, [freeze, batches], checkpoint_every=1, progress=False)
    export(model, tokenizer, folder / "model")
    return batches.seen


def run(folder: Path, base: Path, kill_at: int | None = None) -> list[int]:
    (seen,) = run_ranks(train, folder, base, kill_at, world=1, group=False)
    return seen


def kill_at(batch: int, folder: Path, base: Path) -> int:
    """Train until the end of ``batch``; the step that can be gone on from."""
    with pytest.raises(RanksError) as killed:
        run(folder, base, batch)
    assert killed.value.codes == [-signal.SIGKILL]
    return int(latest_checkpoint(folder).stem.removeprefix("step="))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, model_folder) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(folder, model_folder) == list(range(STEPS * ACCUMULATE))
    return load_file(folder / "model" / "model.safetensors")


@pytest.mark.parametrize(
    ("batches", "step"),
    [
        # Step 3 has been made, and is not saved yet.
        ([5], 2),
        # Within step 5; resumed from step 4, and after its first micro-batch killed again.
        pytest.param([8, 9], 4, marks=pytest.mark.exhaustive),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(
    tmp_path, model_folder, uninterrupted, batches, step
):
    for batch in batches:
        assert kill_at(batch, tmp_path, model_folder) == step
    assert run(tmp_path, model_folder) == list(range(ACCUMULATE * step, STEPS * ACCUMULATE))
    resumed = load_file(tmp_path / "model" / "model.safetensors")
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[name], value) for name, value in uninterrupted.items())
