"""The tracker on one device against plain evaluation, and on two ranks against one."""

import json
import warnings
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from forked_ranks import run_ranks
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import FSDPStrategy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

from freezetrain.callbacks import ForgettingTracker
from freezetrain.errors import UserError
from freezetrain.evaluation import Document, evaluate

VOCABULARY = 30

# Lightning's advice on these loaders and checkpoints, and what it calls in torch.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{message}")
    for message in (
        "does not have many workers",
        "smaller than the logging interval",
        "LeafSpec",
        "your dataloader is not resumable",
        "callbacks used to create the checkpoint",
    )
]


class Trained(L.LightningModule):
    """A LightningModule as a user may write it; GPT-2 trains with dropout by default."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2, n_positions=16)
        self.net = GPT2LMHeadModel(config)
        self.losses = []

    def training_step(self, batch, batch_idx):
        assert all(module.training for module in self.net.modules())
        if isinstance(batch, tuple):
            batch = torch.stack(batch)
        ids = batch["input_ids"] if isinstance(batch, dict) else batch
        loss = self.net(input_ids=ids, labels=ids).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def documents(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        language: [
            Document(torch.randint(VOCABULARY, (n,), generator=generator).tolist(), 2 * n)
            for n in sizes
        ]
        for language, sizes in {"en": [5, 20], "de": [9], "sw": [3, 12, 7]}.items()
    }


def tracker(**options):
    settings = {"target": "sw", "every_n_steps": 2, "max_length": 16, "module": "net"}
    return ForgettingTracker(documents(), **{**settings, "table": False, **options})


def fit(module, *callbacks, ckpt_path=None, collate=None, **options):
    """Train on shuffled batches: their order comes from the global random state."""
    L.seed_everything(7, verbose=False)
    generator = torch.Generator().manual_seed(2)
    rows = torch.randint(VOCABULARY, (24, 10), generator=generator)
    settings = {"devices": 1, "max_steps": 6, "max_epochs": -1, "logger": False}
    settings["enable_checkpointing"] = False
    trainer = L.Trainer(
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{**settings, **options},
    )
    loader = DataLoader(rows, batch_size=2, shuffle=True, collate_fn=collate)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=ckpt_path and True)
    return trainer


def steps(tracker):
    return [evaluation.step for evaluation in tracker.history.evaluations]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_steps": 5}, [0, 2, 4, 5]),
        ({"max_steps": 6}, [0, 2, 4, 6]),  # the end is not evaluated twice
        ({"max_steps": 5, "accumulate_grad_batches": 3}, [0, 2, 4, 5]),
        ({"max_epochs": 1, "max_steps": -1, "accumulate_grad_batches": 5}, [0, 2, 3]),
        ({"max_epochs": 2, "max_steps": -1, "accumulate_grad_batches": 12}, [0, 2]),
    ],
)
def test_it_evaluates_at_the_start_every_n_optimizer_steps_and_at_the_end(options, expected):
    watched = tracker()
    fit(Trained(), watched, **options)
    assert steps(watched) == expected


@pytest.mark.parametrize("wrap", [None, lambda rows: {"input_ids": torch.stack(rows)}])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"every_n_tokens": 70}, [0, 2, 4, 5]),  # 40 tokens a step
        ({"at_samples": [0, 5, 8, 16]}, [0, 2, 4, 5]),  # 4 samples a step
        ({}, [0, 5]),
    ],
)
def test_it_counts_tokens_and_samples_in_batches(wrap, options, expected):
    watched = tracker(**{"every_n_steps": None, **options})
    fit(Trained(), watched, max_steps=5, accumulate_grad_batches=2, collate=wrap)
    assert steps(watched) == expected
    for evaluation in watched.history.evaluations:
        assert evaluation.tokens == evaluation.step * 2 * 2 * 10
        assert evaluation.samples == evaluation.step * 2 * 2


def test_batches_that_cannot_be_counted():
    watched = tracker()
    fit(Trained(), watched, max_steps=2, collate=tuple)
    assert steps(watched) == [0, 2]
    assert watched.history.last.tokens is None
    with pytest.raises(UserError, match=r"samples are counted in batches of .*, got tuple; give"):
        fit(Trained(), tracker(every_n_steps=None, at_samples=[4]), collate=tuple)


def test_it_evaluates_in_the_trainers_precision():
    def expected(module):
        with torch.autocast("cpu", torch.bfloat16):
            return evaluate(module.net, documents(), max_length=16)

    watched, module = tracker(), Trained()
    base = expected(module)
    assert base != evaluate(module.net, documents(), max_length=16)
    trainer = fit(module, watched, max_steps=1, precision="bf16-mixed")
    assert watched.history.base.figures == base
    assert watched.history.last.figures == expected(module) == watched.figures(trainer, module)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_training_is_bit_identical_with_and_without_it(accumulate):
    plain, watched = Trained(), Trained()
    fit(plain, accumulate_grad_batches=accumulate)
    state = torch.get_rng_state()
    fit(watched, tracker(every_n_steps=1), accumulate_grad_batches=accumulate)
    assert torch.equal(torch.get_rng_state(), state)
    assert watched.losses == plain.losses
    for (name, before), after in zip(
        plain.state_dict().items(), watched.state_dict().values(), strict=True
    ):
        assert torch.equal(before, after), name
    assert all(module.training for module in watched.net.modules())


def test_it_adds_no_warning():
    warned = []
    for callbacks in ([], [tracker()]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(Trained(), *callbacks)
        warned.append({str(warning.message) for warning in caught})
    assert warned[1] == warned[0]


def test_the_base_survives_a_resumed_run(tmp_path):
    whole = tracker()
    fit(Trained(), whole, max_steps=6)

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=4, save_top_k=-1)
    first = tracker(results_path=tmp_path / "results.json")
    fit(Trained(), save, first, max_steps=5, enable_checkpointing=True)
    assert steps(first) == [0, 2, 4, 5]

    # From step 4, with other weights at the start, and onto the file of the interrupted run.
    resumed = tracker(results_path=tmp_path / "results.json")
    fit(Trained(seed=3), resumed, max_steps=6, ckpt_path=tmp_path / "step=4.ckpt")
    assert steps(resumed) == [0, 2, 4, 6]
    assert resumed.history.evaluations[:3] == whole.history.evaluations[:3]
    assert resumed.history.base == whole.history.base
    written = json.loads((tmp_path / "results.json").read_text())
    assert [entry["step"] for entry in written["evaluations"]] == [0, 2, 4, 6]


@pytest.mark.parametrize("time_share", [None, 1.0])
def test_a_resumed_run_goes_on_counting_and_with_the_same_subsample(tmp_path, time_share):
    schedule = {"every_n_steps": None, "at_samples": [4, 8, 12], "time_share": time_share}
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    first, resumed = tracker(**schedule), tracker(**schedule)
    fit(Trained(), save, first, max_steps=3, enable_checkpointing=True)
    fit(Trained(), resumed, max_steps=7, ckpt_path=tmp_path / "step=3.ckpt")
    last = resumed.history.last
    assert (last.step, last.samples, last.tokens) == (7, 14, 140)
    before = first.history.evaluations
    assert resumed.history.evaluations[: len(before)] == before
    if time_share is None:
        assert steps(resumed) == [0, 2, 3, 4, 6, 7]  # 3 was the end, which was saved after it
    else:
        assert first._share.chosen is not None
        assert resumed._share.chosen == first._share.chosen
        assert resumed._share.spent >= first._share.spent


def test_the_last_checkpoint_holds_the_last_evaluation(tmp_path):
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    fit(Trained(), save, tracker(), max_steps=5, enable_checkpointing=True)
    state = torch.load(tmp_path / "step=5.ckpt", weights_only=True)["callbacks"]
    saved = state["ForgettingTracker"]["evaluations"]
    assert [entry["step"] for entry in saved] == [0, 2, 4, 5]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, callbacks in {"with": [tracker()], "without": []}.items():
        fit(Trained(), *callbacks, max_steps=2).save_checkpoint(folder / f"{name}.ckpt")
    return folder


@pytest.mark.parametrize(
    ("checkpoint", "change", "message"),
    [
        ("without", {}, "resumes at step 2 from a checkpoint without a base"),
        ("with", {"max_length": 8}, "max_length 16, got 8"),
        ("with", {"documents": documents() | {"en": documents()["de"]}}, "of 'en'"),
    ],
)
def test_a_base_of_something_else_is_refused(checkpoints, checkpoint, change, message):
    settings = {"target": "sw", "max_length": 16, "module": "net"}
    settings = {"documents": documents(), **settings, "table": False, **change}
    with pytest.raises(UserError, match=message):
        fit(Trained(), ForgettingTracker(**settings), ckpt_path=checkpoints / f"{checkpoint}.ckpt")


def test_tensorboard_gets_the_scalars(tmp_path):
    watched = tracker()
    fit(Trained(), watched, max_steps=3, logger=TensorBoardLogger(tmp_path, name="", version=""))
    events = EventAccumulator(str(tmp_path)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("forgetting/")]
    assert sorted(tags) == sorted(watched.history.scalars())
    for tag, value in watched.history.scalars().items():
        logged = events.Scalars(tag)
        assert [event.step for event in logged] == [0, 2, 3]
        assert logged[-1].value == pytest.approx(value, rel=1e-6)


def test_the_table_is_printed_after_each_evaluation():
    module, lines = Trained(), []
    module.print = lines.append  # past the progress bar, as Lightning's does
    fit(module, tracker(table=True), max_steps=2)
    printed = "\n".join(lines)
    assert printed.count("Forgetting at step") == 2
    assert "Forgetting at step 2, against step 0" in printed
    assert printed.count("sw (target)") == 2


def test_the_lightning_module_itself_can_be_evaluated():
    class Itself(Trained):
        def forward(self, input_ids):
            return self.net(input_ids=input_ids)

    watched, module = tracker(module=""), Itself()
    fit(module, watched, max_steps=1)
    assert watched.history.last.figures == evaluate(module, documents(), max_length=16)


def test_a_submodule_that_is_not_there_is_refused_with_near_misses():
    with pytest.raises(UserError, match=r"Trained has no submodule 'nat' \(did you mean 'net'\?\)"):
        fit(Trained(), tracker(module="nat"))


def test_other_strategies_are_refused_by_name():
    trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(UserError, match="cannot evaluate under FSDPStrategy"):
        tracker().setup(trainer, Trained(), "fit")


def two_ranks(rank: int, world: int, folder: Path) -> dict:
    """Fits under DDP: watched, plain, watched again, and watched by tokens of ragged batches."""
    ddp = {"strategy": "ddp", "devices": world, "max_steps": 3}
    base = evaluate(Trained().net, documents(), max_length=16)
    first = tracker(results_path=folder / "results.json", table=True)
    watched, plain = Trained(), Trained()
    fit(watched, first, **ddp)
    fit(plain, **ddp)
    with pytest.raises(UserError) as refused:
        fit(Trained(), tracker(results_path=folder / "results.json"), **ddp)
    counted = tracker(every_n_steps=None, every_n_tokens=40)
    fit(Trained(), counted, collate=Ragged(10 - 4 * rank), **ddp)
    return {
        "history": json.loads(json.dumps(first.history.to_dict())),
        "base": {language: figures.nll for language, figures in base.items()},
        "same": all(map(torch.equal, watched.parameters(), plain.parameters())),
        "refusal": str(refused.value),
        "counted": [(e.step, e.tokens, e.samples) for e in counted.history.evaluations],
    }


class Ragged:
    """Ranks differ in length, so that each alone would call others due."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, batch):
        return torch.stack(batch)[:, : self.length]


def test_two_ranks_see_what_one_sees(tmp_path):
    first, second = run_ranks(two_ranks, tmp_path, group=False, logs=tmp_path / "logs")
    assert first == second
    assert first["same"], "training differs with the tracker"
    assert "results.json' exists" in first["refusal"]
    evaluations = first["history"]["evaluations"]
    counts = [(entry["step"], entry["tokens"], entry["samples"]) for entry in evaluations]
    assert counts == [(0, 0, 0), (2, 80, 8), (3, 120, 12)]  # 2 rows of 10 tokens on each
    for language, figures in evaluations[0]["figures"].items():
        assert figures["nll"] == pytest.approx(first["base"][language], rel=1e-6)
    # 2 rows of 10 tokens and 2 of 6 in each step.
    assert first["counted"] == [(0, 0, 0), (2, 64, 8), (3, 96, 12)]
    assert json.loads((tmp_path / "results.json").read_text())["evaluations"] == evaluations
    printed = [(tmp_path / "logs" / f"{rank}.out").read_text() for rank in (0, 1)]
    assert [text.count("Forgetting at step") for text in printed] == [3, 0], "one rank prints"
