"""Run by test_stopping.py as ``FOLDER wait``, by test_extras_engines.py as ``FOLDER ENGINE...``."""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
from extras_module import EachStep, Module, fit
from frozen_reference import TinyLM, mixed_region
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim.swa_utils import get_ema_multi_avg_fn

from freezetrain.callbacks import RegionFreeze, StopOnSignal, WeightAverage
from freezetrain.errors import Preempted

DECAY = 0.7


class Waits(Module):
    """In batch 5, the last of step 3, until the signal has come."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 5:
            print("waiting in batch 5", flush=True)
            stop = next(c for c in self.trainer.callbacks if isinstance(c, StopOnSignal))
            while stop._received is None:
                time.sleep(0.01)
        return super().training_step(batch, batch_idx)


class Distributed(Module):
    """Keeps the weights of each step; rank 1 may be told, in batch 4, to stop."""

    def __init__(self, told: bool = False) -> None:
        super().__init__()
        self.told = told
        self.course = [self.whole()]

    def configure_model(self) -> None:
        if getattr(self, "device_mesh", None) is not None:
            for part in (self.wrapped.up, self.wrapped):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        if self.told and batch_idx == 4 and self.global_rank == 1:
            os.kill(os.getpid(), signal.SIGUSR2)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx % 2:
            self.course.append(self.whole())

    def whole(self) -> dict[str, Tensor]:
        return {
            name: value.full_tensor() if hasattr(value, "full_tensor") else value
            for name, value in self.weights().items()
        }


def averaged(average: WeightAverage, module: Distributed) -> tuple[dict[str, Tensor], bool]:
    """The averaged weights; and whether the others came back, also for the forward pass."""
    batch = torch.arange(8).view(2, 4)
    with torch.no_grad():
        before, logits = module.whole(), module.wrapped(batch)
        with average.averaged(module):
            inside, other = module.whole(), module.wrapped(batch)
        after = module.wrapped(batch)
    back = all(torch.equal(value, before[name]) for name, value in module.whole().items())
    plain = TinyLM().float()
    plain.load_state_dict({**inside, "head.weight": inside["embedding.weight"]})
    torch.testing.assert_close(other, plain(batch).detach())
    return inside, back and torch.equal(after, logits) and not torch.equal(other, logits)


def reference(course: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """torch's own average over the weights of each step."""
    average = {name: value.clone() for name, value in course[0].items()}
    update = get_ema_multi_avg_fn(DECAY)
    for weights in course[1:]:
        update(list(average.values()), [weights[name] for name in average], None)
    return average


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    return [name for name, value in one.items() if not torch.equal(value, other[name])]


def run(engine: str, folder: Path) -> dict:
    from freeze_engines_fit import strategy

    def train(module: nn.Module, *callbacks, **options) -> Distributed:
        freeze = RegionFreeze(mixed_region(TinyLM()), check_base=False)
        how = "ddp" if engine == "ddp" else strategy(engine)
        return fit(freeze, *callbacks, module=module, devices=2, strategy=how, **options)

    sharded = engine != "ddp"
    first, second, third = ([] if sharded else [WeightAverage(DECAY)] for _ in range(3))
    uninterrupted = train(Distributed(), *first)
    stopped, save = Distributed(told=True), EachStep(folder / "checkpoints")
    said = "nothing"
    try:
        train(stopped, StopOnSignal(), save, *second)
    except Preempted as error:
        said = str(error)
    again = train(
        Distributed(), StopOnSignal(), EachStep(folder / "again"), *third,
        ckpt_path=folder / "checkpoints" / "step=3.ckpt",
    )  # fmt: skip
    found = {
        "said": said,
        "seen": stopped.seen,
        "saved": save.saved,
        "seen again": again.seen,
        "differ": differ(uninterrupted.whole(), again.whole()),
    }
    if sharded:
        return found
    (one, back), (other, _) = averaged(*first, uninterrupted), averaged(*third, again)
    expected = reference(uninterrupted.course)
    region = mixed_region(TinyLM())
    found |= {
        "averages differ": differ(one, other),
        "back": back,
        "from torch's": max(float((one[n] - value).abs().max()) for n, value in expected.items()),
        "moved": max(float((one[n] - v).abs().max()) for n, v in uninterrupted.whole().items()),
        "frozen moved": [
            frozen.name
            for frozen in region.resolve(TinyLM())
            if not torch.equal(
                one[frozen.name][frozen.entries.mask()],
                uninterrupted.course[0][frozen.name][frozen.entries.mask()],
            )
        ],
    }
    return found


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    if sys.argv[2] == "wait":
        freeze = RegionFreeze(mixed_region(TinyLM()), check_base=False)
        try:
            fit(freeze, StopOnSignal(), EachStep(folder), module=Waits())
        except Preempted as error:
            print(error)
            sys.exit(75)
        return
    for engine in sys.argv[2:]:
        place = folder / engine
        place.mkdir(exist_ok=True)
        try:
            found = run(engine, place)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        (place / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(found))
        dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    main()
