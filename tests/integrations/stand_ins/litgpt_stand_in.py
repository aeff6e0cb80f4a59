"""As litgpt.pretrain is made: ``main`` makes all, loads it, and calls ``fit`` with a dictionary."""

import torch
from lightning import Fabric
from transformers import GPT2Config, GPT2LMHeadModel


def main(steps):
    torch.manual_seed(0)
    fabric = Fabric(accelerator="cpu", devices=1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2))
    model = fabric.setup(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    state = {"model": model, "optimizer": fabric.setup_optimizers(optimizer), "step_count": 0}
    fit(fabric, steps, state=state)


def fit(fabric, steps, state):
    for _ in range(steps):
        tokens = torch.randint(256, (4, 16))
        fabric.backward(state["model"](input_ids=tokens, labels=tokens).loss)
        state["optimizer"].step()
        state["optimizer"].zero_grad()
        state["step_count"] += 1
