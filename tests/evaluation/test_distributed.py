"""Two gloo processes give the figures that one gives, also where each pass needs both."""

import json
import os
import subprocess
import sys

import pytest

# A program of its own rather than multiprocessing: under pytest's importlib mode a child process
# cannot import the test module. A toy model rather than transformers', which load for seconds.
PROGRAM = """
import json, os, sys
from types import SimpleNamespace
import torch
import torch.distributed as dist
from torch import nn
from freezetrain.evaluation import Document, evaluate

class Toy(nn.Module):  # the logits of a token depend on all tokens before it
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.head = nn.Linear(8, 30)
        self.norm = nn.BatchNorm1d(8)  # buffers, which DDP's forward would exchange

    def forward(self, input_ids, attention_mask):
        if world > 1:  # as ranks that hold parts of a model: one more pass here would hang
            dist.all_reduce(passes)
        hidden = self.embed(input_ids).cumsum(1).sin()
        hidden = self.norm(hidden.transpose(1, 2)).transpose(1, 2)
        return SimpleNamespace(logits=self.head(hidden))

rank, world, store, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
torch.manual_seed(0)
passes = torch.ones(())
model = Toy()
generator = torch.Generator().manual_seed(1)
texts = {
    language: [
        Document(torch.randint(30, (n,), generator=generator).tolist(), 2 * n) for n in sizes
    ]
    for language, sizes in {"en": [2, 31, 9, 4], "de": [24], "sw": [5, 5, 12, 50]}.items()
}
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    model = nn.parallel.DistributedDataParallel(model)
results = [
    evaluate(model, texts, max_length=16, batch_tokens=40),
    evaluate(model, {"de": texts["de"][:1]}, max_length=64),  # one window: a process has none
]
with open(f"{out}-{world}-{rank}.json", "w") as file:
    json.dump([{k: v.to_dict() for k, v in figures.items()} for figures in results], file)
if world > 1:
    dist.barrier()
# Seen on a busy machine: gloo's threads abort a process on its way out, with all its work done.
os._exit(0)
"""


def start(rank, world, folder):
    arguments = [str(rank), str(world), str(folder / "store"), str(folder / "out")]
    return subprocess.Popen(
        [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_give_the_figures_of_one(tmp_path):
    processes = [start(0, 1, tmp_path), start(0, 2, tmp_path), start(1, 2, tmp_path)]
    try:
        outcomes = [(process.communicate(timeout=120)[1], process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for errors, process in outcomes:
        assert process.returncode == 0, errors
        assert "arning" not in errors
    one, first, second = (
        json.loads((tmp_path / f"out-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert first == second
    for alone, together in zip(one, first, strict=True):
        assert alone.keys() == together.keys()
        for language in alone:
            assert together[language]["tokens"] == alone[language]["tokens"]
            assert together[language]["bytes"] == alone[language]["bytes"]
            assert together[language]["correct"] == alone[language]["correct"]
            errors = [one[language]["standard_errors"] for one in (together, alone)]
            assert (errors[0] is None) == (errors[1] is None)
            assert errors[0] is None or errors[0] == pytest.approx(errors[1], rel=1e-4)
            assert together[language]["nll"] == pytest.approx(alone[language]["nll"], rel=1e-6)
