"""A model that knows the texts which are watched, and so has something to forget."""

from functools import cache

import torch
from torch import Tensor, nn
from trainer_reference import llama, weights_of
from watched_texts import texts


@cache
def _weights() -> dict[str, Tensor]:
    model = llama()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(20):
        for language in ("en", "de"):
            for document in texts()[language]:
                ids = torch.tensor([document.ids])
                model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return weights_of(model)


def knowing_model() -> nn.Module:
    model = llama()
    model.load_state_dict(_weights())
    return model
