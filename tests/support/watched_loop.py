"""A toy that trains in a plain loop, with its clock, for the tests of ForgettingWatch."""

from types import SimpleNamespace

import torch
from torch import nn

from freezetrain.evaluation import Document, ForgettingWatch
from freezetrain.nll import token_nll

VOCABULARY, ROWS, LENGTH = 30, 4, 6


class Toy(nn.Module):
    """The logits of a token depend on all tokens before it; dropout while it trains."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.head = nn.Linear(8, VOCABULARY)
        self.tokens = 0  # that it was evaluated on

    def forward(self, input_ids):
        if not self.training:
            self.tokens += input_ids.numel()
        hidden = nn.functional.dropout(self.embed(input_ids).cumsum(1).sin(), 0.1, self.training)
        return SimpleNamespace(logits=self.head(hidden))


def documents(seed: int = 1, more: int = 0) -> dict[str, list[Document]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"en": [5, 20, *[9] * more], "de": [9], "sw": [3, 12, 7, *[8] * more]}
    return {
        language: [
            Document(torch.randint(VOCABULARY, (n,), generator=generator).tolist(), 2 * n)
            for n in lengths
        ]
        for language, lengths in sizes.items()
    }


class Loop:
    """Steps of a user's own: ``ROWS`` sequences of ``LENGTH`` tokens each."""

    def __init__(self, seed: int = 0) -> None:
        self.model = Toy(seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.losses: list[float] = []
        self.step = 0

    def train(self, watch: ForgettingWatch | None, steps: int, end: bool = True) -> "Loop":
        while self.step < steps:
            draw = torch.Generator().manual_seed(self.step)
            batch = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=draw)
            loss = token_nll(self.model(batch).logits, batch).mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.losses.append(loss.item())
            self.step += 1
            if watch is not None:
                watch.after_step(self.model, self.step, **self.counts())
        if watch is not None and end:
            watch.end(self.model, self.step, **self.counts())
        return self

    def counts(self) -> dict[str, int]:
        return {"tokens": self.step * ROWS * LENGTH, "samples": self.step * ROWS}
