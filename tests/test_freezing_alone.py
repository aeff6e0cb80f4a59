"""Freezing needs torch, numpy and safetensors alone; the callback lightning too."""

import subprocess
import sys

import pytest

# What pip would have installed with the packages named, and nothing else: finders neither see
# other modules nor their metadata, which some libraries look at.
WITHOUT = r"""
import importlib.metadata as metadata
import re
import sys

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

installed = set()

def install(*names):
    waiting = [*names]
    while waiting:
        name = plain(waiting.pop())
        if name not in installed:
            installed.add(name)
            try:
                lines = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            lines = [line for line in lines if "extra ==" not in line]
            waiting += [re.match(r"[\w.-]+", line).group() for line in lines]

install("lightning", "torch", "numpy", "safetensors")  # their metadata, before it is hidden
everything, installed = installed, set()
install("torch", "numpy", "safetensors")
owners = {top: set(map(plain, names)) for top, names in metadata.packages_distributions().items()}
owners.pop("freezetrain", None)

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if not owners.get(name.partition(".")[0], installed) & installed:
            return None
        return self.finder.find_spec(name, path, target)

    def find_distributions(self, *context):
        find = getattr(self.finder, "find_distributions", lambda *_: ())
        return [each for each in find(*context) if plain(each.metadata["Name"]) in installed]

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for name in ("rich", "transformers", "lazy_loader", "lightning"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(name)
"""

FREEZE = """
import torch
from freezetrain import CheckError, Region, UserError, freeze
from freezetrain.freezing import FreezeOptions, compare_weights

model = torch.nn.Linear(4, 4)
file = Region.random(model, 0.5, seed=0).save("region.safetensors")
before = {name: value.detach().clone() for name, value in model.named_parameters()}
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
with freeze(model, optimizer, file) as handle:
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert handle.verify() == 10
assert compare_weights(before, dict(model.named_parameters()), Region.load(file)).moved == 0
"""

CALLBACK = """
installed |= everything
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel
from freezetrain import RegionFreeze
from freezetrain.callbacks import WeightAverage

module = BoringModel()
start = module.layer.weight.detach().clone()
region = Region.tensors(module, ["layer.weight"])
trainer = L.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False,
                    enable_checkpointing=False, limit_val_batches=0, enable_model_summary=False,
                    callbacks=[RegionFreeze(region), WeightAverage(0.9)])
trainer.fit(module)
assert torch.equal(module.layer.weight, start)
"""


@pytest.mark.exhaustive
def test_freezing_needs_few_packages(tmp_path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT + FREEZE + CALLBACK],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
