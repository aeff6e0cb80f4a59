"""Packed with document_mask, documents have the loss that they have alone."""

from itertools import pairwise

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Qwen3Config,
)

from freezetrain.data.packing import Packed
from freezetrain.data.tokens import tokenize
from freezetrain.errors import UserError
from freezetrain.nll import next_token_nll
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import TextSource
from freezetrain.training.data import TextData
from freezetrain.training.module import CausalLM
from freezetrain.training.trainer import fit

SMALL = {"vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096,
         "head_dim": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "gemma3, sliding": Gemma3TextConfig(
        **SMALL, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt2": GPT2Config(vocab_size=400, n_embd=16, n_layer=2, n_head=2, n_positions=4096),
}


def settings(length: int) -> Optimization:
    return Optimization(max_steps=1, sequence_length=length, micro_batch=1, document_mask=True)


@pytest.fixture(scope="module")
def store(tokenizer, tmp_path_factory):
    return tokenize(
        TextSource(documents=8), "en", tokenizer, tmp_path_factory.mktemp("cache"), workers=1
    )


@pytest.mark.parametrize("flash", [False, True])  # flash: the rows laid end to end, as for it
@pytest.mark.parametrize("name", CONFIGS)
def test_loss_equals_that_of_documents_one_by_one(store, name, flash, monkeypatch):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    data = TextData({"en": Packed(store, len(store), True)}, settings(len(store)))
    batch = next(iter(data.train_dataloader()))
    module = CausalLM(model, data.settings, steps=1)
    monkeypatch.setattr("freezetrain.training.module.lays_end_to_end", lambda _: flash)
    doubled = {key: value.repeat(2, 1) if value.ndim else value for key, value in batch.items()}
    with torch.no_grad():
        logits = module._logits(doubled["input_ids"], doubled["position_ids"])
    packed = next_token_nll(logits, doubled["labels"]).double().sum(1)
    starts = [*store.starts(0, len(store)), len(store)]
    assert len(starts) > 4
    alone = 0.0
    for first, last in pairwise(starts):
        ids = torch.from_numpy(store.read(first, last))
        with torch.no_grad():
            logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1].double()
        alone += F.cross_entropy(logits, ids[1:], reduction="sum").item()
    assert packed.tolist() == pytest.approx([alone, alone], rel=1e-6)
    assert batch["step_labels"] == len(store) - (len(starts) - 1)


def test_a_model_that_mixes_documents_is_refused(store, tmp_path):
    mamba = AutoModelForCausalLM.from_config(
        MambaConfig(vocab_size=400, hidden_size=16, state_size=4, num_hidden_layers=1)
    )
    data = TextData({"en": Packed(store, 64, True)}, settings(64))
    with pytest.raises(UserError, match="does not keep the documents of a sequence apart"):
        fit(mamba, data, tmp_path, progress=False)


def test_training_is_with_documents_apart(store, tmp_path, make_model):
    """The first step's logged loss is the loss of the documents' pieces run alone."""
    model = make_model()
    data = TextData({"en": Packed(store, 64, True)}, settings(64))
    batch = next(iter(data.train_dataloader()))
    ids, positions = batch["input_ids"][0], batch["position_ids"][0]
    starts = [*torch.nonzero(positions == 0)[:, 0].tolist(), 64]
    assert len(starts) > 2 or positions[-1] == 63
    losses = []
    for first, last in pairwise(starts):
        with torch.no_grad():
            logits = model(input_ids=ids[None, first:last], use_cache=False).logits[0]
        labels = batch["labels"][0, first:last]
        losses.append(F.cross_entropy(logits, labels, reduction="none", ignore_index=-100))
    expected = torch.cat(losses).sum() / (batch["labels"] != -100).sum()
    trainer = fit(model, data, tmp_path, progress=False)
    assert isinstance(trainer, L.Trainer)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), rel=1e-5)
