"""Compiled and checkpointed models under sharding engines, against one plain process."""

import json
from itertools import product

import pytest
import torch
from forked_workers import run_worker
from torch import nn

from freezetrain.regions import Region

pytest.importorskip("deepspeed")

from recomputed_worker import (
    ENGINES,
    RATIO,
    STEPS,
    WAYS,
    adamw,
    batch,
    tiny_llama,
)


@pytest.fixture(scope="module")
def losses(tmp_path_factory) -> dict[str, list[float]]:
    """Mean over the two ranks, whose halves of the batch are of one size."""
    folder = tmp_path_factory.mktemp("recomputed")
    run_worker("recomputed_worker.py", folder)
    first, second = (json.loads((folder / f"losses-{rank}.json").read_text()) for rank in range(2))
    return {
        cell: [(a + b) / 2 for a, b in zip(first[cell], second[cell], strict=True)]
        for cell in first
    }


@pytest.fixture(scope="module")
def expected() -> list[float]:
    """A plain loop that masks, steps, and writes the frozen values back."""
    model = tiny_llama()
    masks = Region.random(model, RATIO, seed=0).masks()
    optimizer = adamw(model)
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = []
    for _ in range(STEPS):
        loss = model(input_ids=batch(), labels=batch()).loss
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            parameter.grad.masked_fill_(masks[name], 0.0)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.where(masks[name], kept[name], parameter))
    return found


@pytest.mark.parametrize("cell", [f"{engine}-{way}" for engine, way in product(ENGINES, WAYS)])
def test_losses_are_those_of_a_plain_loop(
    losses: dict[str, list[float]], expected: list[float], cell: str
) -> None:
    assert losses[cell] == pytest.approx(expected, rel=1e-5)
