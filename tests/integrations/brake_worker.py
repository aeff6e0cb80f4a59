"""One rank of the runs in test_hf_brake_ranks.py: ``python brake_worker.py FOLDER``.

Under each engine the Trainer trains freely, and is then held to a limit between what the first run
had lost after 4 steps and after 6; and to one that nothing but the base is within.
"""

import json
import logging
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from cpu_stand_in import accelerate_on_cpu
from distributed_worker import ENGINES, whole
from hf_runs import trainer
from knowing_model import knowing_model
from trainer_reference import EPS
from transformers import TrainerCallback
from watched_texts import texts

from freezetrain.errors import UserError
from freezetrain.integrations.hf_brake import ForgettingBrakeCallback
from freezetrain.integrations.hf_forgetting import ForgettingTrackerCallback


class Course(TrainerCallback):
    """The whole weights at the start and after each second step."""

    def __init__(self):
        self.weights = {}

    def on_train_begin(self, args, state, control, model, **_):
        self.weights[0] = whole(model)

    def on_step_end(self, args, state, control, model, **_):
        if state.global_step % 2 == 0:
            self.weights[state.global_step] = whole(model)


def run(engine: str, folder: Path, limits: dict | None = None) -> tuple:
    """The weights that are left, the tracker, the brake if there is one, and the course."""
    tracker = ForgettingTrackerCallback(texts(), "sw", every_n_steps=2, max_length=16, table=False)
    callbacks, brake, course = [tracker], None, Course()
    if limits is not None:
        brake = ForgettingBrakeCallback(tracker, limits, "roll_back")
        callbacks.append(brake)
    options = {"world": 2, "adam_epsilon": EPS, **ENGINES[engine]}
    held = trainer(knowing_model(), folder, *callbacks, course, steps=8, **options)
    held.train()
    return whole(held.model), tracker, brake, course


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


def told(engine: str, folder: Path) -> dict:
    _, tracker, _, free = run(engine, folder / "free")
    lost = [one.forgetting.languages["en"].relative for one in tracker.history.evaluations]
    limit = (lost[2] + lost[3]) / 2
    weights, _, brake, _ = run(engine, folder / "held", {"en": limit})
    found = {
        "lost": lost,
        "limit": limit,
        "brake": brake.results(),
        "of": [step for step, then in free.weights.items() if same(weights, then)],
    }
    try:
        weights, *_ = run(engine, folder / "base", {"worst": 1e-9})
        found["base"] = same(weights, free.weights[0])
    except UserError as error:
        found["base"] = str(error)
    return found


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    environment = dict(os.environ)
    for engine in ENGINES:
        if engine != "ddp":
            accelerate_on_cpu()
        found = told(engine, folder / engine)
        (folder / f"{engine}-{dist.get_rank()}.json").write_text(json.dumps(found))
        os.environ.clear()  # of what says which engine accelerate is to use
        os.environ.update(environment)
        dist.barrier()
    os._exit(0)  # gloo may abort at exit


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other rank would wait in a collective
