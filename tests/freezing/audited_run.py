"""A model in training under a freeze, one step at a time, for tests of its audit."""

import torch
from frozen_reference import TinyLM, adamw, loss_of, steps_of_batches
from torch import Tensor, nn

from freezetrain.freezing import Freeze, freeze
from freezetrain.regions import Entries, Region

(BATCH,) = steps_of_batches(1, 1)[0]


def two_parameters() -> Region:
    return Region(
        {
            "up.weight": Entries.from_indices((10, 6), [7, 20, 33]),
            "down.weight": Entries.from_columns((6, 10), [3]),
        }
    )


class Run:
    """A model in training, one step at a time."""

    def __init__(self, region: Region | None = None, **options) -> None:
        self.model = TinyLM()
        self.region = two_parameters() if region is None else region
        self.optimizer = adamw(self.model.parameters())
        self.handle: Freeze = freeze(self.model, self.optimizer, self.region, **options)

    def backward(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = loss_of(self.model(BATCH), BATCH)
        loss.backward()
        return loss

    def step(self, times: int = 1) -> None:
        for _ in range(times):
            self.backward()
            self.optimizer.step()


def hooks_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    dicts = [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]
    for parameter in model.parameters():
        dicts += [parameter._backward_hooks or {}, parameter._post_accumulate_grad_hooks or {}]
    return sum(map(len, dicts))


def changed(run: Run) -> None:
    run.backward()
    run.model.down.weight.grad[2, 3] = 0.5
