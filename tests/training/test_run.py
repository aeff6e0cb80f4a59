"""Checkpoints, resume after SIGKILL, export."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from freezetrain.errors import UserError
from freezetrain.training.run import export, latest_checkpoint

# Trains a GPT-2 with dropout for 12 steps of 2 micro-batches; prints each step as it ends.
SCRIPT = """
import sys
from pathlib import Path
import lightning as L
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from freezetrain.callbacks import RegionFreeze
from freezetrain.corpora import read_languages
from freezetrain.recipe import Optimization, TextSource
from freezetrain.regions import Region
from freezetrain.training.data import TextData
from freezetrain.training.run import export, fit

folder, tokenizer_folder, slow = Path(sys.argv[1]), sys.argv[2], len(sys.argv) > 3
torch.manual_seed(0)
config = GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=64)
assert config.resid_pdrop > 0
model = GPT2LMHeadModel(config)
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
settings = Optimization(steps=12, sequence_length=16, micro_batch=2, accumulate=2,
                        learning_rate=1e-2, warmup_steps=2, weight_decay=0.1)

class Steps(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        print("batch", trainer.fit_loop.batch_idx, flush=True)
        if slow:
            import time; time.sleep(0.15)

region = Region.random(model, 0.1, seed=3)
data = TextData(read_languages(TextSource(), ["zh"]), tokenizer, settings)
fit(model, data, folder, [RegionFreeze(region, check_base=False), Steps()],
    checkpoint_every=1, progress=False)
export(model, tokenizer, folder / "model")
"""


def start(folder, tokenizer_folder, *more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(tokenizer_folder), *more],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def kill_at(process, batch):
    for line in process.stdout:
        if line.strip() == f"batch {batch}":
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert start(folder, model_folder).wait(timeout=120) == 0
    return weights(folder)


@pytest.mark.parametrize("batch", [5, 14])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, model_folder, uninterrupted, batch):
    # Batch 5 ends step 3, batch 14 lies inside step 8.
    kill_at(start(tmp_path, model_folder, "slow"), batch)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    step = int(re.search(r"\d+", checkpoint.stem).group())
    assert step in (batch // 2, (batch + 1) // 2)
    again = start(tmp_path, model_folder)
    seen = [line.strip() for line in again.stdout if line.startswith("batch")]
    assert again.wait(timeout=120) == 0
    assert seen == [f"batch {n}" for n in range(2 * step, 24)]
    resumed = weights(tmp_path)
    assert resumed.keys() == uninterrupted.keys()
    for name, value in uninterrupted.items():
        assert torch.equal(resumed[name], value), name


def test_killed_twice_within_one_step(tmp_path, model_folder, uninterrupted):
    # Resumed from step 4, and killed again after its first micro-batch, before step 5 is saved.
    kill_at(start(tmp_path, model_folder, "slow"), 8)
    kill_at(start(tmp_path, model_folder, "slow"), 9)
    step = int(latest_checkpoint(tmp_path).stem.removeprefix("step="))
    again = start(tmp_path, model_folder)
    seen = [line.strip() for line in again.stdout if line.startswith("batch")]
    assert again.wait(timeout=120) == 0
    assert seen == [f"batch {n}" for n in range(2 * step, 24)]
    for name, value in weights(tmp_path).items():
        assert torch.equal(uninterrupted[name], value), name


def test_latest_checkpoint_counts_steps_as_numbers(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    for step in (9, 100, 20):
        torch.save({}, tmp_path / "checkpoints" / f"step={step}.ckpt")
    assert latest_checkpoint(tmp_path).name == "step=100.ckpt"


def test_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "step=3.ckpt"
    torch.save({"weights": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"step=3.ckpt is damaged"):
        latest_checkpoint(tmp_path)


def test_export_loads_with_transformers(tmp_path, model, tokenizer):
    export(model, tokenizer, tmp_path / "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    text = "人人生而自由"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text) == tokenizer(text)
    assert os.listdir(tmp_path) == ["model"]


def test_export_overwrites_nothing(tmp_path, model, tokenizer):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="exists already"):
        export(model, tokenizer, tmp_path / "model")
    assert os.listdir(tmp_path / "model") == ["mine.txt"]
