"""A small model that has two languages to forget, and trains on a third one."""

import lightning as L
import torch
from torch import nn

from freezetrain.evaluation import Document
from freezetrain.nll import token_nll

STEPS, EVERY = 8, 2


def sentences(first: int, seed: int) -> torch.Tensor:
    """[16, 24] ids of a language of 20 tokens, each of which has one usual successor."""
    source = torch.Generator().manual_seed(seed)
    follows = torch.randperm(20, generator=source)
    ids = [torch.randint(20, (16,), generator=source)]
    for _ in range(23):
        other = torch.randint(20, (16,), generator=source)
        usual = torch.rand(16, generator=source) < 0.8
        ids.append(torch.where(usual, follows[ids[-1]], other))
    return first + torch.stack(ids, dim=1)


TEXTS = {"old": sentences(50, 1), "odd": sentences(60, 2), "new": sentences(70, 3)}
DOCUMENTS = {
    name: [Document(row.tolist(), len(row)) for row in rows[:4]] for name, rows in TEXTS.items()
}


def learn_what_is_held_out(model: nn.Module) -> None:
    """Train it on the old and the odd language."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = torch.cat([TEXTS["old"], TEXTS["odd"]])
    for _ in range(60):
        token_nll(model(input_ids=rows).logits, rows).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


class Stream:
    """The new language, a row in a batch, from the one that is next."""

    def __init__(self):
        self.next = 0

    def __len__(self):
        return 2 * STEPS

    def __iter__(self):
        while self.next < len(self):
            self.next += 1
            yield TEXTS["new"][self.next - 1][None]

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


class Module(L.LightningModule):
    """Keeps the weights of each step; a buffer counts the steps."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.course = {0: self.weights()}

    def training_step(self, batch, batch_idx):
        return token_nll(self.model(input_ids=batch).logits, batch).mean()

    def train_dataloader(self):
        return Stream()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=4e-3)

    def optimizer_step(self, *arguments, **options):
        super().optimizer_step(*arguments, **options)
        self.count += 1
        self.course[int(self.count)] = self.weights()

    def weights(self):
        return {name: value.clone() for name, value in self.state_dict().items()}
