"""Trainings in processes of their own, each of which makes some steps whenever it is its turn.

They are whole jobs: ``freezetrain train`` as its verb runs it, and ``transformers.Trainer`` with
what a script needs to start it. Each keeps the defaults that it has for what costs time: its
progress bar, what it logs and how often, its kernel of AdamW.
"""

import contextlib
import os
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.harness import finish

FREEZETRAIN, FROZEN, TRAINER = "freezetrain", "freezetrain, 1% frozen", "HF Trainer"
_MANY = 10_000  # steps that a run is told to make: both log seldom in so long a run, and never end


@dataclass(frozen=True)
class Job:
    """What is trained on what, by each way."""

    model: Path
    """Folder of the model and its tokenizer."""
    region: Path
    """Region file, of 1%."""
    documents: bool
    """Whether ``transformers.Trainer`` is given whole documents to pad, or packed sequences."""
    device: str
    sequence_length: int
    """Tokens."""
    batch: int
    """Sequences, or documents, in a step."""
    turns: int
    """Turns that there will be."""
    steps: int
    """Steps of a turn."""
    warm: int = 2
    """Steps before the first turn."""


def process(way: str, job: Job, folder: Path, pipe: Connection) -> None:
    """A process that does nothing but :func:`work`."""
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # both would take a GPU
    work(way, job, folder, pipe)


def work(way: str, job: Job, folder: Path, pipe: Connection) -> None:
    """Train as ``way`` does. Sends "started" after the first step, "ready" when it is warm, and for
    each "turn" that it gets the tokens learned from and the places computed; for anything else the
    model's loss on fixed token ids, and ends. Sends an error as it stands.
    """
    run = hf_trainer if way == TRAINER else freezetrain_train
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stderr(nowhere),
            contextlib.redirect_stdout(nowhere),
        ):
            run(way, job, folder, Turns(job, pipe))
    except Ended:
        pass  # there is nothing to be exported
    except Exception:
        pipe.send(RuntimeError(f"{way}:\n{traceback.format_exc()}"))


class Ended(BaseException):
    """Ends a training from within, past whatever handles errors."""


class Turns:
    """Lets a training go on when it is its turn."""

    def __init__(self, job: Job, pipe: Connection) -> None:
        self._job, self._pipe = job, pipe
        self._done = 0
        self._begin()

    def _begin(self) -> None:
        self._tokens: Tensor | int = 0
        self._places = 0

    def step_ended(self, model: torch.nn.Module, tokens: Tensor | int, places: int) -> None:
        """To be called after each optimizer step, with what it learned from and computed."""
        self._tokens = self._tokens + tokens
        self._places += places
        self._done += 1
        if self._done == 1:
            finish(self._job.device)
            self._pipe.send("started")
        if self._done < self._job.warm or (self._done - self._job.warm) % self._job.steps:
            return
        finish(self._job.device)
        warm = self._done == self._job.warm
        self._pipe.send("ready" if warm else (int(self._tokens), self._places))
        if self._pipe.recv() != "turn":
            self._pipe.send(loss_of(model, self._job))
            raise Ended
        self._begin()


def loss_of(model: torch.nn.Module, job: Job) -> float:
    """Mean loss on a row of fixed token ids: tells whether two trainings did the same."""
    ids = torch.arange(min(64, job.sequence_length)).remainder(50)[None]
    ids = ids.to(next(model.parameters()).device)
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss)


def recipe(job: Job, folder: Path, frozen: bool = False) -> Any:
    """Of ``freezetrain train``: all languages of the package's texts, no evaluation."""
    from freezetrain.recipe.optimization import Engine, Optimization
    from freezetrain.recipe.sources import ModelSource
    from freezetrain.training.recipe import TrainRecipe, Watch

    return TrainRecipe(
        model=ModelSource(str(job.model)),
        region=str(job.region) if frozen else None,
        optimization=Optimization(
            max_steps=_MANY,
            sequence_length=job.sequence_length,
            micro_batch=job.batch,
            schedule="constant",
            warmup_steps=0,
            weight_decay=0.0,  # the two do not agree on what decays
        ),
        engine=Engine(devices=1),
        watch=Watch(off=True),
        checkpoint_every=2 * _MANY,
        cache=str(folder / "cache"),
        workers=1,  # of a process that itself may start none
    )


def freezetrain_train(way: str, job: Job, folder: Path, turns: Turns) -> None:
    """The job of the verb, with a clock in the place where it measures its own speed."""
    from freezetrain.training import train

    class Clocked(train.Throughput):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            turns.step_ended(pl_module.model, batch["step_labels"], batch["input_ids"].numel())

    with patch.object(train, "Throughput", Clocked):
        train.run(recipe(job, folder, way == FROZEN), folder / "run", table=False)


def hf_trainer(way: str, job: Job, folder: Path, turns: Turns) -> None:
    """Whole documents cut to the sequence length and padded to the longest of a batch, by
    transformers' own collator; or, in their order, the very sequences that freezetrain packs.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForLanguageModeling,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )

    tokenizer = AutoTokenizer.from_pretrained(job.model)
    rows: list[dict[str, Any]]
    collate: Callable[[Any], Any]
    if job.documents:
        rows = documents(tokenizer, job.sequence_length)
        collate = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    else:
        rows, collate = sequences(tokenizer, job, folder), default_data_collator
    counts: deque[tuple[int, int]] = deque()  # of batches that are loaded

    def counted(batch: Any) -> dict[str, Tensor]:
        found = collate(batch)
        labels = found.get("shift_labels", found["labels"][:, 1:])
        counts.append((int((labels != -100).sum()), found["input_ids"].numel()))
        return found

    class Clocked(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            turns.step_ended(more["model"], *counts.popleft())

    Trainer(
        AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32),
        TrainingArguments(
            str(folder / "trainer"),
            max_steps=_MANY,
            per_device_train_batch_size=job.batch,
            learning_rate=5e-5,
            lr_scheduler_type="constant",
            adam_beta2=0.95,
            bf16=job.device == "cuda",
            use_cpu=job.device == "cpu",
            save_strategy="no",
            remove_unused_columns=False,
            train_sampling_strategy="random" if job.documents else "sequential",
        ),
        data_collator=counted,
        train_dataset=rows,  # type: ignore[arg-type]
        callbacks=[Clocked()],
    ).train()


def documents(tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """The package's training documents with BOS and EOS, cut to ``length`` tokens."""
    from freezetrain.data.texts import read_languages
    from freezetrain.recipe.sources import TextSource

    texts = [text for found in read_languages(TextSource(), []).values() for text in found.train]
    first, last = [tokenizer.bos_token_id], [tokenizer.eos_token_id]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [{"input_ids": (first + ids + last)[:length]} for ids in encoded]


def sequences(tokenizer: Any, job: Job, folder: Path) -> list[dict[str, Any]]:
    """What freezetrain's loader gives for all turns, as rows with the labels already shifted."""
    from freezetrain.training.data import read_data

    data = read_data(recipe(job, folder), tokenizer, 1)
    batches = islice(iter(data.train_dataloader()), job.warm + job.turns * job.steps + 1)
    return [
        {"input_ids": ids, "labels": ids, "shift_labels": labels}
        for batch in batches
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]
