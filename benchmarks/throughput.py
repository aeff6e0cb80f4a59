"""Training throughput: tokens learned from per second by `freezetrain train`, over those by
`transformers.Trainer` on the same model and texts, with the same batch, precision and AdamW
settings, no evaluation and no checkpoint: 1.2 is a fifth more. Each trains in a process of its own,
and waits while it is another's turn.

On packed sequences both are given the same ones in the same order. On documents, the articles of
the Universal Declaration in 30 languages that come with the package, ``Trainer`` pads whole ones
with its collator for language modeling, and freezetrain packs.

The trainings are whole jobs: ``freezetrain train`` as its verb runs it, and ``Trainer`` with what a
script needs to start it. Each keeps the defaults that it has for what costs time: its progress bar,
what it logs and how often, its kernel of AdamW.

Processor time is what all threads of a process took, which other programs on the machine change
less than the time on the clock. Memory is the most that a process held, libraries too.
"""

import contextlib
import multiprocessing
import os
import re
import statistics
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import freezetrain
from benchmarks.harness import Options, Results, Row, alternate, finish, ratios, shown
from benchmarks.memory import make_model
from freezetrain.files import readable
from freezetrain.regions import Region

TITLE = "Training throughput"
FREEZETRAIN, FROZEN, TRAINER = "freezetrain", "freezetrain, 1% frozen", "HF Trainer"
CALLBACK = "HF Trainer, 1% frozen by our callback"
WAYS = (TRAINER, CALLBACK, FREEZETRAIN, FROZEN)
BASE = Path(freezetrain.__file__).parent / "base"
LARGE = {
    "cpu": {"hidden_size": 448, "intermediate_size": 1216, "num_hidden_layers": 6},
    "cuda": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12},
}
"""Of random weights, with the tokenizer of the small base."""
TURNS = 3  # times the rounds asked for: the same step takes a tenth more or less from turn to turn
VOCABULARY, LENGTH = 6144, {"cpu": 512, "cuda": 1024}


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


def measure(options: Options) -> Results:
    """Packed sequences, on a CPU with a smaller and a larger model, and documents."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        return {"cases": [side_by_side(job, job.turns - 1) for job in jobs(options, folder)]}


def jobs(options: Options, folder: Path) -> list[Job]:
    """Make the models in ``folder``. On a GPU steps of the small base are too short to time."""
    device, length, turns = options.device, LENGTH[options.device], TURNS * options.rounds + 1
    large, small = folder / "model", folder / "small.safetensors"
    make_model(large, rows=VOCABULARY, max_position_embeddings=length, **LARGE[device])
    of_large = (large, large / "region.safetensors")
    if device == "cuda":
        return [
            Job(*of_large, False, device, length, batch=4, turns=turns, steps=10),
            Job(*of_large, True, device, length, batch=4, turns=turns, steps=20),
        ]
    Region.random(AutoModelForCausalLM.from_pretrained(BASE), 0.01, seed=0).save(small)
    return [
        Job(BASE, small, False, device, length, batch=4, turns=turns, steps=1),
        Job(*of_large, False, device, length, batch=4, turns=turns, steps=1),
        Job(BASE, small, True, device, length, batch=8, turns=turns, steps=2),
    ]


def side_by_side(job: Job, rounds: int, ways: Sequence[str] = WAYS) -> dict[str, Any]:
    """Start all, let them take turns, and end them."""
    counts: dict[str, list[tuple[int, int, float]]] = {way: [] for way in ways}
    starts, losses, peaks = {}, {}, {}
    with ExitStack() as stack:
        pipes = {}
        for way in ways:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            began = time.perf_counter()
            pipes[way], child = multiprocessing.Pipe()
            started = multiprocessing.get_context("spawn").Process(
                target=process, args=(way, job, folder, child), daemon=True
            )
            started.start()
            child.close()  # so that the end of the process is seen here
            stack.callback(started.join)
            stack.callback(started.kill)
            _answer(pipes[way], "started")
            starts[way] = time.perf_counter() - began
            _answer(pipes[way], "ready")
        turns = {way: partial(_turn, pipes[way], counts[way]) for way in ways}
        seconds = alternate(turns, rounds)
        for way in ways:
            pipes[way].send("end")
            losses[way], peaks[way] = _answer(pipes[way])
    timed = {way: counts[way][1:] for way in ways}
    tokens = {way: [count for count, _, _ in timed[way]] for way in ways}
    places = {way: sum(count for _, count, _ in timed[way]) for way in ways}
    processor = {way: [spent for _, _, spent in timed[way]] for way in ways}
    speed = {
        way: [count / time for count, time in zip(tokens[way], seconds[way], strict=True)]
        for way in ways
    }
    a_token = {
        way: [spent / count for spent, count in zip(processor[way], tokens[way], strict=True)]
        for way in ways
    }
    model = AutoModelForCausalLM.from_pretrained(job.model)
    return {
        "documents": job.documents,
        "parameters": model.num_parameters(),
        "sequence_length": job.sequence_length,
        "batch": job.batch,
        "steps_a_turn": job.steps,
        "seconds": seconds,
        "tokens": tokens,
        "padding": {way: 1 - sum(tokens[way]) / places[way] for way in ways},
        "tokens_per_second": {way: statistics.median(speed[way]) for way in ways},
        "speed": ratios(speed, TRAINER),
        "step_seconds": {way: statistics.median(seconds[way]) / job.steps for way in ways},
        "processor_seconds": processor,
        "processor": None if job.device == "cuda" else ratios(a_token, TRAINER),
        "peak_bytes": peaks,
        "start_seconds": starts,
        "loss_after": losses,
    }


def _answer(pipe: Connection, expected: str | None = None) -> Any:
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    assert expected is None or answer == expected, answer
    return answer


def _turn(pipe: Connection, counts: list[tuple[int, int, float]]) -> None:
    pipe.send("turn")
    counts.append(_answer(pipe))


def rows(figures: Results) -> list[Row]:
    """A line for each way of each case, and for what starting takes."""
    table = []
    for case in figures["cases"]:
        table += _rows(case)
    starts = {
        way: [case["start_seconds"][way] for case in figures["cases"]]
        for way in (FREEZETRAIN, TRAINER)
    }
    times = ", ".join(f"{way} {min(s):.1f} to {max(s):.1f} s" for way, s in starts.items())
    table.append(Row("From the start of the process to the end of the first step", times))
    off = [
        abs(case["loss_after"][FREEZETRAIN] - case["loss_after"][TRAINER])
        for case in figures["cases"]
        if not case["documents"]
    ]
    what = "Packed sequences: largest difference of the two models' loss after the training"
    return [*table, Row(what, f"{max(off):.1e} nats a token")]


def _rows(case: Mapping[str, Any]) -> list[Row]:
    size = f"{case['batch']} × {case['sequence_length']} tokens"
    padding = case["padding"]
    if case["documents"]:
        what = f"Documents of up to {case['sequence_length']} tokens, {case['batch']} sequences"
        what += f" a step ({padding[TRAINER]:.0%} of Trainer's places are padding)"
    else:
        what = f"The same packed sequences, {size} a step"
    what += f", {case['parameters'] / 1e6:.1f}M parameters"
    speed, per_second = case["speed"], case["tokens_per_second"]
    table = []
    for way in (way for way in speed if way != TRAINER):
        figure = f"{shown(speed[way])}; {per_second[way]:,.0f} against {per_second[TRAINER]:,.0f}/s"
        median = round(speed[way]["median"], 2)
        goal, met, note = "", None, ""
        if way == FREEZETRAIN:
            goal = "above 1.00" if case["documents"] else "at least 1.00"
            met = median > 1 if case["documents"] else median >= 1
        if met is False:
            own, other = (1000 * case["step_seconds"][name] for name in (way, TRAINER))
            note = f"a step takes {own:.1f} ms against {other:.1f} ms"
            if speed[way]["high"] >= 1:
                note += "; the quartiles include 1"
        table.append(Row(f"{what}: {way}", figure, goal, met, note))
    if processor := case.get("processor"):  # neither on a GPU nor in older results
        times = [f"{way} {shown(processor[way], 2)}" for way in speed if way != TRAINER]
        table.append(Row(f"{what}: processor time a token, of {TRAINER}'s", "; ".join(times)))
    if held := case.get("peak_bytes"):
        peaks = [f"{way} {readable(most)}" for way, most in held.items()]
        table.append(Row(f"{what}: most memory of a process", "; ".join(peaks)))
    return table


def process(way: str, job: Job, folder: Path, pipe: Connection) -> None:
    """A process that does nothing but :func:`work`."""
    if job.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # both would take a GPU
    work(way, job, folder, pipe)


def work(way: str, job: Job, folder: Path, pipe: Connection) -> None:
    """Train as ``way`` does. Sends "started" after the first step, "ready" when it is warm, and for
    each "turn" that it gets the tokens learned from, the places computed and the processor's
    seconds; for anything else the model's loss on fixed token ids and the most bytes held, and
    ends. Sends an error as it stands.
    """
    run = hf_trainer if way in (TRAINER, CALLBACK) else freezetrain_train
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
        self._processor = time.process_time()

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
        spent = time.process_time() - self._processor
        self._pipe.send("ready" if warm else (int(self._tokens), self._places, spent))
        if self._pipe.recv() != "turn":
            held = most_held(self._job.device)
            self._pipe.send((loss_of(model, self._job), held))
            raise Ended
        self._begin()


def loss_of(model: torch.nn.Module, job: Job) -> float:
    """Mean loss on a row of fixed token ids: tells whether two trainings did the same."""
    ids = torch.arange(min(64, job.sequence_length)).remainder(50)[None]
    ids = ids.to(next(model.parameters()).device)
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss)


def most_held(device: str) -> int:
    """Bytes: of tensors on a GPU, else of this whole process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) * 1024


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
    """The job of the verb, with a clock where it measures its own speed."""
    from freezetrain.callbacks import Throughput
    from freezetrain.training import train

    own = Throughput.on_train_batch_end

    def clocked(
        self: Throughput, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        own(self, trainer, pl_module, outputs, batch, batch_idx)
        turns.step_ended(pl_module.model, batch["step_labels"], batch["input_ids"].numel())

    with patch.object(Throughput, "on_train_batch_end", clocked):
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

    from freezetrain.integrations.hf import RegionFreezeCallback

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
        figures = collate(batch)
        labels = figures.get("shift_labels", figures["labels"][:, 1:])
        counts.append((int((labels != -100).sum()), figures["input_ids"].numel()))
        return figures

    class Clocked(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            turns.step_ended(more["model"], *counts.popleft())

    frozen = [RegionFreezeCallback(job.region)] if way == CALLBACK else []
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
        callbacks=[Clocked(), *frozen],
    ).train()


def documents(tokenizer: Any, length: int) -> list[dict[str, Any]]:
    """The package's training documents with BOS and EOS, cut to ``length`` tokens."""
    from freezetrain.data.texts import read_languages
    from freezetrain.recipe.sources import TextSource

    texts = [
        text for language in read_languages(TextSource(), []).values() for text in language.train
    ]
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
