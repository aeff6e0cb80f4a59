"""The tracker under DDP: two gloo processes see what one sees, and train as without it."""

import json
import os
import subprocess
import sys

import pytest

# A program of its own, as Lightning starts the second process by running it again.
PROGRAM = """
import json, logging, os, sys, warnings
from types import SimpleNamespace
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader
from freezetrain.callbacks import ForgettingTracker
from freezetrain.evaluation import Document, evaluate
from freezetrain.nll import token_nll

torch.set_num_threads(1)
for message in ("does not have many workers", "LeafSpec"):  # Lightning's own
    warnings.filterwarnings("ignore", message=f".*{message}")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)

class Toy(nn.Module):  # the logits of a token depend on all tokens before it
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.head = nn.Linear(8, 30)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.head(self.embed(input_ids).cumsum(1).sin()))

class Trained(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.model = Toy()

    def training_step(self, batch, batch_idx):
        return token_nll(self.model(batch).logits, batch).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)

generator = torch.Generator().manual_seed(1)
texts = {
    language: [Document(torch.randint(30, (n,), generator=generator).tolist(), n) for n in sizes]
    for language, sizes in {"en": [5, 20], "de": [9], "sw": [3, 12, 7]}.items()
}
rows = torch.randint(30, (24, 10), generator=generator)

def ragged(batch):  # ranks differ in length, so that each alone would call others due
    return torch.stack(batch)[:, : 10 - 4 * int(os.environ.get("LOCAL_RANK", 0))]

def fit(*callbacks, collate=None):
    module = Trained()
    base = evaluate(module.model, texts, max_length=16)
    trainer = L.Trainer(
        accelerator="cpu", strategy="ddp", devices=2, max_steps=3, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks),
    )
    trainer.fit(module, DataLoader(rows, batch_size=2, collate_fn=collate))
    return module, trainer.global_rank, base

out = sys.argv[1]
options = dict(target="sw", every_n_steps=2, max_length=16, results_path=f"{out}/results.json")
module, rank, base = fit(tracker := ForgettingTracker(texts, **options))
plain, _, _ = fit()
pairs = zip(module.parameters(), plain.parameters(), strict=True)
try:
    fit(ForgettingTracker(texts, **options))
    refusal = None
except Exception as error:
    refusal = str(error)
counted = ForgettingTracker(texts, every_n_tokens=40, max_length=16, table=False)
fit(counted, collate=ragged)
with open(f"{out}/rank-{rank}.json", "w") as file:
    json.dump({
        "history": tracker.history.to_dict(),
        "base": {language: figures.nll for language, figures in base.items()},
        "same": all(torch.equal(a, b) for a, b in pairs),
        "refusal": refusal,
        "counted": [(e.step, e.tokens, e.samples) for e in counted.history.evaluations],
    }, file)
torch.distributed.barrier()
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # gloo's threads may abort a regular exit
"""


def test_two_processes(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["same"], "training differs with the tracker"
    assert "results.json' exists" in first["refusal"]
    counted = [(e["step"], e["tokens"], e["samples"]) for e in first["history"]["evaluations"]]
    assert counted == [(0, 0, 0), (2, 80, 8), (3, 120, 12)]  # 2 rows of 10 tokens on each
    for language, figures in first["history"]["evaluations"][0]["figures"].items():
        assert figures["nll"] == pytest.approx(first["base"][language], rel=1e-6)
    # 2 rows of 10 tokens and 2 of 6 in each step.
    assert first["counted"] == [[0, 0, 0], [2, 64, 8], [3, 96, 12]]
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["evaluations"] == first["history"]["evaluations"]
    assert done.stdout.count("Forgetting at step") == 3, "one process prints"
    assert "Warning" not in done.stderr
