"""Checkpoints, resume after SIGKILL, export."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from freezetrain.training.checkpoints import latest_checkpoint

# Trains a GPT-2 with dropout for 12 steps of 2 micro-batches; prints each step as it ends.
SCRIPT = """
import sys
from pathlib import Path
import lightning as L
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from freezetrain.callbacks import RegionFreeze
from freezetrain.recipe import Optimization, TextSource
from freezetrain.regions import Region
from freezetrain.training.data import TextData
from freezetrain.training.export import export
from freezetrain.sequences.packing import Packed
from freezetrain.training.run import fit
from freezetrain.sequences.tokens import tokenize

folder, tokenizer_folder, slow = Path(sys.argv[1]), sys.argv[2], len(sys.argv) > 3
torch.manual_seed(0)
config = GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=64)
assert config.resid_pdrop > 0
model = GPT2LMHeadModel(config)
tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
settings = Optimization(max_steps=12, sequence_length=16, micro_batch=2, batch_tokens=64,
                        learning_rate=1e-2, warmup_steps=2, weight_decay=0.1)

class Steps(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        print("batch", trainer.fit_loop.batch_idx, flush=True)
        if slow:
            import time; time.sleep(0.15)

region = Region.random(model, 0.1, seed=3)
store = tokenize(TextSource(), "zh", tokenizer, folder / "cache", workers=1)
data = TextData({"zh": Packed(store, 16)}, settings)
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


def test_killed_and_resumed_equals_uninterrupted(tmp_path, model_folder, uninterrupted):
    # Batch 5 ends step 3.
    kill_at(start(tmp_path, model_folder, "slow"), 5)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    step = int(re.search(r"\d+", checkpoint.stem).group())
    assert step in (2, 3)
    again = start(tmp_path, model_folder)
    seen = [line.strip() for line in again.stdout if line.startswith("batch")]
    assert again.wait(timeout=120) == 0
    assert seen == [f"batch {n}" for n in range(2 * step, 24)]
    resumed = weights(tmp_path)
    assert resumed.keys() == uninterrupted.keys()
    for name, value in uninterrupted.items():
        assert torch.equal(resumed[name], value), name


def test_killed_twice_within_one_step(tmp_path, model_folder, uninterrupted):
    # Inside step 5; resumed from step 4, and after its first micro-batch again, so before step 5
    # is saved.
    kill_at(start(tmp_path, model_folder, "slow"), 8)
    kill_at(start(tmp_path, model_folder, "slow"), 9)
    step = int(latest_checkpoint(tmp_path).stem.removeprefix("step="))
    again = start(tmp_path, model_folder)
    seen = [line.strip() for line in again.stdout if line.startswith("batch")]
    assert again.wait(timeout=120) == 0
    assert seen == [f"batch {n}" for n in range(2 * step, 24)]
    for name, value in weights(tmp_path).items():
        assert torch.equal(uninterrupted[name], value), name
