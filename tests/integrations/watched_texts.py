"""What the trainers' watches evaluate, and what they must find in a model's weights."""

import pytest
import torch
from trainer_reference import VOCABULARY

from freezetrain.evaluation import Document, ForgettingWatch, History, evaluate

STEPS = [0, 3, 6]  # of the reference's six, at which ``watch`` evaluates
LENGTH = 8


def texts(seed: int = 1) -> dict[str, list[Document]]:
    """Documents in three languages."""
    source = torch.Generator().manual_seed(seed)
    return {
        language: [
            Document(torch.randint(VOCABULARY, (n,), generator=source).tolist(), 2 * n)
            for n in sizes
        ]
        for language, sizes in {"en": [5, 20], "de": [9], "sw": [3, 12, 7]}.items()
    }


def watch() -> ForgettingWatch:
    return ForgettingWatch(texts(), "sw", every_n_steps=3, max_length=LENGTH, table=False)


def check_history(history: History, base: torch.nn.Module, adapted: torch.nn.Module) -> None:
    """Each step once, and at the first and last what ``evaluate`` finds in one process."""
    assert [evaluation.step for evaluation in history.evaluations] == STEPS
    for found, model in ((history.base, base), (history.last, adapted)):
        for language, expected in evaluate(model, texts(), max_length=LENGTH).items():
            assert found.figures[language].tokens == expected.tokens
            assert found.figures[language].nll == pytest.approx(expected.nll, rel=1e-5)
