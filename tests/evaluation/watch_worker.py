"""One rank of test_watch_ranks.py: ``python watch_worker.py FOLDER``; each has another clock."""

import json
import os
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from watched_loop import Loop, documents

from freezetrain.errors import UserError
from freezetrain.evaluation import ForgettingWatch
from freezetrain.evaluation import watch as module


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, clock = dist.get_rank(), SimpleNamespace(now=0.0)

    def read() -> float:
        clock.now += [1.0, 1000.0][rank]  # each look at it takes time
        return clock.now

    module.time = SimpleNamespace(perf_counter=read)
    settings = {"target": "sw", "every_n_steps": 2, "max_length": 16, "time_share": 0.1}
    settings["results_path"] = folder / "forgetting.json"
    watched, loop = ForgettingWatch(documents(more=20), **settings), Loop()
    watched.start(loop.model)
    while loop.step < 41:
        clock.now += [1.0, 0.1][rank]
        loop.train(watched, loop.step + 1, end=loop.step == 40)
    try:
        ForgettingWatch(documents(), **settings).start(loop.model)
        refusal = None
    except UserError as error:
        refusal = str(error)
    watched.results_path = None
    found = {
        "history": watched.history.to_dict(),
        "chosen": watched._share.chosen,
        "spent": watched._share.spent,
        "refusal": refusal,
    }
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo may abort at exit


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        main(Path(sys.argv[1]))
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the other rank would wait in a collective
