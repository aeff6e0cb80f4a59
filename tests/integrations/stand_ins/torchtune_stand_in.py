"""As torchtune's recipes are made: ``setup`` makes and loads all, ``train`` trains."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel


class Recipe:
    def setup(self, steps):
        torch.manual_seed(0)
        self._model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2))
        self.optimizer = torch.optim.AdamW(self._model.parameters(), lr=1e-2, weight_decay=0.1)
        self.global_step, self._steps = 0, steps

    def train(self):
        for _ in range(self._steps):
            tokens = torch.randint(256, (4, 16))
            self._model(input_ids=tokens, labels=tokens).loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.global_step += 1
