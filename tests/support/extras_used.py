"""Each public import path, loaded and used a little where one extra is installed and nothing else.

    python tests/support/extras_used.py core

needs no test runner: the workflow runs it in real environments, the tests where the packages that
the extra does not bring are hidden.
"""

import ast
import os
import sys
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from pydoc import plain, render_doc
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import freezetrain

ROOT = Path(freezetrain.__file__).parent

# What is there where an extra is installed.
WITHIN = {
    "core": [],
    "evaluation": ["evaluation"],
    "hf": ["evaluation", "hf"],
    "lightning": ["evaluation", "lightning"],
    "train": ["evaluation", "hf", "lightning", "train"],
}
# Folder of the package, or name in one, -> the extras that it needs; nothing: the core has it.
NEEDS = {
    "callbacks": ["lightning"],
    "callbacks.ForgettingBoard": ["lightning", "train"],
    "evaluation": ["evaluation"],
    "integrations": ["hf"],
}


def public_paths() -> list[tuple[str, str, list[str]]]:
    """Module and name of everything public, and the extras that it needs."""
    paths = []
    for stub in sorted(ROOT.rglob("__init__.pyi")):
        room = ".".join(stub.parent.relative_to(ROOT).parts)
        for statement in ast.parse(stub.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.ImportFrom):
                place = room or str(statement.module)
                for name in (alias.name for alias in statement.names):
                    needs = NEEDS.get(f"{place}.{name}", NEEDS.get(place, []))
                    paths.append((".".join(filter(None, ("freezetrain", room))), name, needs))
    for module in sorted((ROOT / "integrations").glob("hf*.py")):
        paths.append((f"freezetrain.integrations.{module.stem}", "__doc__", NEEDS["integrations"]))
    return paths


def check_paths(extra: str) -> None:
    """All load whose extras are there; the others say in one sentence which one brings them."""
    for module, name, needs in public_paths():
        lacking = [need for need in needs if need not in WITHIN[extra]]
        said = refused = None
        try:
            getattr(import_module(module), name)
        except ImportError as error:
            said, refused = str(error), isinstance(error, freezetrain.UserError)
        if lacking:
            assert refused, f"{module}.{name} without {lacking}: {said}"
            assert said.endswith(f"with pip install 'freezetrain[{lacking[0]}]'"), said
        else:
            assert said is None, f"{module}.{name} is not there: {said}"


def check_listed(extra: str) -> None:
    """``help`` has what is there; a star asks for all, and says in one sentence what is missing."""
    names = {name: needs for module, name, needs in public_paths() if module == "freezetrain"}
    there = {name for name, needs in names.items() if {*needs} <= {*WITHIN[extra]}}
    assert {*dir(freezetrain)} == there, f"{dir(freezetrain)} with {extra}"
    helped = plain(render_doc(freezetrain))
    assert all(name in helped for name in there - {"__version__"}), helped
    given: dict[str, object] = {}
    said, refused = "", False
    try:
        exec("from freezetrain import *", given)
    except ImportError as error:
        said, refused = str(error), isinstance(error, freezetrain.UserError)
    if there == names.keys():
        assert not said, said
        assert there <= given.keys()
    else:
        assert refused, said
        assert "with pip install 'freezetrain[" in said


def make_words(torch):
    """A language model of 8 tokens in plain PyTorch, which takes ids [B, L] and gives logits."""

    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(8, 8), torch.nn.Linear(8, 8, bias=False)

        def forward(self, input_ids):
            return SimpleNamespace(logits=self.head(self.embedding(input_ids)))

    return Words()


def use_core() -> None:
    import torch

    from freezetrain import Region, compute_scores, freeze, select
    from freezetrain.freezing import compare_weights
    from freezetrain.rehearsal import full_kl

    model = torch.nn.Linear(4, 4)
    region = Region.random(model, 0.5, seed=0)
    file = region.save("region.safetensors")
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    with freeze(model, optimizer, file) as handle:
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        assert handle.verify() == 10
    change = compare_weights(before, dict(model.named_parameters()), Region.load(file))
    assert change.moved == 0 < change.changed

    model = make_words(torch)
    tokens = [torch.arange(2, 8).reshape(2, 3) for _ in range(2)]
    scores = compute_scores(model, tokens, "taylor", parameters={"head.weight": model.head.weight})
    assert select(scores, 0.25).count == 16
    assert float(full_kl(torch.zeros(3, 8), torch.zeros(3, 8)).sum()) == 0


def use_evaluation() -> None:
    import torch

    from freezetrain.evaluation import Document, ForgettingWatch

    documents = {name: [Document([1, 2, 3], 5), Document([4, 5], 2)] for name in ("en", "zh")}
    model = make_words(torch)
    watch = ForgettingWatch(documents, target="zh", every_n_steps=1, results_path="watched.json")
    watch.start(model)  # and writes a table
    model.head.weight.data.zero_()
    watch.after_step(model, 1)
    watch.end(model, 1)
    assert [evaluation.step for evaluation in watch.history.evaluations] == [0, 1]


def use_lightning() -> None:
    import lightning
    import torch
    from lightning.pytorch.demos.boring_classes import BoringModel

    from freezetrain import Region, RegionFreeze
    from freezetrain.callbacks import WeightAverage

    module = BoringModel()
    start = module.layer.weight.detach().clone()
    callbacks = [RegionFreeze(Region.tensors(module, ["layer.weight"])), WeightAverage(0.9)]
    off = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", limit_val_batches=0, callbacks=callbacks,
        enable_checkpointing=False, **off,
    )  # fmt: skip
    trainer.fit(module)
    assert torch.equal(module.layer.weight, start)


def use_hf() -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    from freezetrain import Region
    from freezetrain.evaluation import Document
    from freezetrain.integrations.hf import RegionFreezeCallback
    from freezetrain.integrations.hf_forgetting import ForgettingTrackerCallback

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=1))
    name = "transformer.h.0.mlp.c_fc.weight"
    start = model.get_parameter(name).detach().clone()
    freeze = RegionFreezeCallback(Region.tensors(model, [name]))
    documents = {name: [Document([1, 2, 3], 5), Document([4, 5], 2)] for name in ("en", "zh")}
    tracker = ForgettingTrackerCallback(documents, target="zh", every_n_steps=1)
    arguments = TrainingArguments("out", max_steps=2, use_cpu=True, report_to=[])
    rows = [{"input_ids": row, "labels": row} for row in torch.arange(64).reshape(8, 8)]
    trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[freeze, tracker])
    trainer.train()
    assert torch.equal(model.get_parameter(name), start)
    assert len(tracker.history.evaluations) == 3


def check_command_line(extra: str) -> None:
    from freezetrain.__main__ import main

    sys.argv[1:] = ["train", "--help"]
    status = None
    try:
        main()
    except SystemExit as left:
        status = left.code
    assert status == (0 if extra == "train" else 2), status


def use(extra: str) -> None:
    """Check and use all that is there with ``extra``, in a folder of its own."""
    with TemporaryDirectory() as folder, chdir(folder):
        check_listed(extra)
        check_paths(extra)
        use_core()
        for name in WITHIN[extra]:
            if name != "train":
                globals()[f"use_{name}"]()
        check_command_line(extra)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    extra = sys.argv[1]
    use(extra)
    print(f"{extra}: all is there", file=sys.stderr)
