"""Two ranks give the figures that one gives, and evaluate, skip and refuse together."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from forked_ranks import run_ranks
from torch import nn
from watched_loop import Loop, documents

from freezetrain.errors import UserError
from freezetrain.evaluation import Document, DocumentSums, ForgettingWatch, evaluate_documents
from freezetrain.evaluation import watch as watch_module


class Toy(nn.Module):
    """The logits of a token depend on all tokens before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(30, 8)
        self.head = nn.Linear(8, 30)
        self.norm = nn.BatchNorm1d(8)  # buffers, which DDP's forward would exchange

    def forward(self, input_ids, attention_mask):
        if dist.is_initialized():  # as ranks that hold parts of a model: one more pass would hang
            dist.all_reduce(torch.ones(()))
        hidden = self.embed(input_ids).cumsum(1).sin()
        hidden = self.norm(hidden.transpose(1, 2)).transpose(1, 2)
        return SimpleNamespace(logits=self.head(hidden))


def toy_sums(model: nn.Module) -> list[dict[str, DocumentSums]]:
    generator = torch.Generator().manual_seed(1)
    texts = {
        language: [
            Document(torch.randint(30, (n,), generator=generator).tolist(), 2 * n) for n in sizes
        ]
        for language, sizes in {"en": [2, 31, 9, 4], "de": [24], "sw": [5, 5, 12, 50]}.items()
    }
    return [
        evaluate_documents(model, texts, max_length=16, batch_tokens=40),
        # One window: a rank has none.
        evaluate_documents(model, {"de": texts["de"][:1]}, max_length=64),
    ]


def sums_of_a_rank(rank: int, world: int) -> list[dict[str, DocumentSums]]:
    return toy_sums(nn.parallel.DistributedDataParallel(Toy()))


def as_json(sums: dict[str, DocumentSums]) -> dict[str, dict]:
    return {language: of_language.to_dict() for language, of_language in sums.items()}


def test_two_ranks_give_the_figures_of_one():
    first, second = run_ranks(sums_of_a_rank)
    assert [as_json(sums) for sums in first] == [as_json(sums) for sums in second]
    for alone, together in zip(toy_sums(Toy()), first, strict=True):
        assert alone.keys() == together.keys()
        for language, sums in alone.items():
            assert together[language].hits.to_dict() == sums.hits.to_dict()
            expected, found = sums.figures(), together[language].figures()
            for name in ("tokens", "bytes", "correct", "documents"):
                assert getattr(found, name) == getattr(expected, name)
            assert found.nll == pytest.approx(expected.nll, rel=1e-6)
            errors = [figures.to_dict()["standard_errors"] for figures in (found, expected)]
            assert errors[0] == (None if errors[1] is None else pytest.approx(errors[1], rel=1e-4))


def watched_by_a_rank(rank: int, world: int, folder: Path) -> dict:
    """Each rank has another clock, on which each look takes time."""
    clock = SimpleNamespace(now=0.0)

    def read() -> float:
        clock.now += [1.0, 1000.0][rank]
        return clock.now

    watch_module.time = SimpleNamespace(perf_counter=read)
    settings = {"target": "sw", "every_n_steps": 2, "max_length": 16, "time_share": 0.1}
    settings["results_path"] = folder / "forgetting.json"
    shown: list[str] = []
    watched, loop = ForgettingWatch(documents(more=20), **settings), Loop()
    watched.show = shown.append
    watched.start(loop.model)
    while loop.step < 41:
        clock.now += [1.0, 0.1][rank]
        loop.train(watched, loop.step + 1, end=loop.step == 40)
    with pytest.raises(UserError, match=r"forgetting.json' exists"):
        ForgettingWatch(documents(), **settings).start(loop.model)
    state = watched.state_dict()
    history = json.loads(json.dumps(watched.history.to_dict()))
    return {"history": history, "share": state["share"], "shown": shown}


def test_ranks_whose_clocks_disagree_evaluate_the_same_and_refuse_together(tmp_path):
    first, second = run_ranks(watched_by_a_rank, tmp_path)
    history, shown = first["history"], first.pop("shown")
    assert second.pop("shown") == []
    assert first == second
    assert len(shown) == len(history["evaluations"])
    written = json.loads((tmp_path / "forgetting.json").read_text())
    assert written["evaluations"] == history["evaluations"]
    steps = [evaluation["step"] for evaluation in history["evaluations"]]
    assert (steps[0], steps[-1]) == (0, 41)
    assert 2 < len(steps) < 22, "some are left out, as rank 0's clock says"

    # One process gives the same on these documents at these steps.
    alone, loop = ForgettingWatch(documents(more=20), "sw", max_length=16, table=False), Loop()
    alone.start(loop.model)
    chosen = first["share"]["chosen"]
    some = {name: [documents(more=20)[name][n] for n in chosen[name]] for name in chosen}
    for evaluation in history["evaluations"]:
        loop.train(None, evaluation["step"])
        alone.documents = documents(more=20) if evaluation["step"] == 0 else some
        expected = alone.evaluate(loop.model)
        assert evaluation["figures"].keys() == expected.keys()
        for language, figures in evaluation["figures"].items():
            assert figures["tokens"] == expected[language].tokens
            assert figures["nll"] == pytest.approx(expected[language].nll, rel=1e-6)
