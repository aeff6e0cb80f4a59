"""Training throughput: tokens learned from per second by `freezetrain train`, over those by
`transformers.Trainer` on the same model and texts, with the same batch, precision and AdamW
settings, no evaluation and no checkpoint: 1.2 is a fifth more. Each trains in a process of its own,
and waits while it is another's turn.

On packed sequences both are given the same ones in the same order. On documents, the articles of
the Universal Declaration in 30 languages that come with the package, ``Trainer`` pads whole ones
with its collator for language modeling, and freezetrain packs. See :mod:`.throughput_ways`.
"""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

import freezetrain
from benchmarks.harness import Found, Options, Row, alternate, ratios, shown
from benchmarks.random_model_runs import make_model
from benchmarks.throughput_ways import FREEZETRAIN, FROZEN, TRAINER, Job, process
from freezetrain.regions import Region

TITLE = "Training throughput"
WAYS = (TRAINER, FREEZETRAIN, FROZEN)
BASE = Path(freezetrain.__file__).parent / "base"
LARGE = {
    "cpu": {"hidden_size": 448, "intermediate_size": 1216, "num_hidden_layers": 6},
    "cuda": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12},
}
"""Of random weights, with the tokenizer of the small base."""
TURNS = 3  # times the rounds asked for: the same step takes a tenth more or less from turn to turn
VOCABULARY, LENGTH = 6144, {"cpu": 512, "cuda": 1024}


def measure(options: Options) -> Found:
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
    counts: dict[str, list[tuple[int, int]]] = {way: [] for way in ways}
    starts, losses = {}, {}
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
            losses[way] = _answer(pipes[way])
    tokens = {way: [count for count, _ in counts[way][1:]] for way in ways}  # the first: untimed
    places = {way: sum(count for _, count in counts[way][1:]) for way in ways}
    speed = {
        way: [count / time for count, time in zip(tokens[way], seconds[way], strict=True)]
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
        "start_seconds": starts,
        "loss_after": losses,
    }


def _answer(pipe: Connection, expected: str | None = None) -> Any:
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    assert expected is None or answer == expected, answer
    return answer


def _turn(pipe: Connection, counts: list[tuple[int, int]]) -> None:
    pipe.send("turn")
    counts.append(_answer(pipe))


def rows(found: Found) -> list[Row]:
    """A line for each way of each case, and for what starting takes."""
    table = []
    for case in found["cases"]:
        table += _rows(case)
    starts = {
        way: [case["start_seconds"][way] for case in found["cases"]]
        for way in (FREEZETRAIN, TRAINER)
    }
    told = ", ".join(f"{way} {min(s):.1f} to {max(s):.1f} s" for way, s in starts.items())
    table.append(Row("From the start of the process to the end of the first step", told))
    off = [
        abs(case["loss_after"][FREEZETRAIN] - case["loss_after"][TRAINER])
        for case in found["cases"]
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
    return table
