"""The module trains as a plain PyTorch loop does; documents are kept apart where asked."""

from itertools import pairwise

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from called_operators import Called
from heads import chunks_of
from largest_tensor import Largest
from torch.optim.lr_scheduler import LambdaLR
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
from freezetrain.errors import CheckError, UserError
from freezetrain.nll import next_token_nll
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import TextSource
from freezetrain.training.data import TextData
from freezetrain.training.module import CausalLM
from freezetrain.training.optimizer import learning_rate_factor
from freezetrain.training.trainer import fit

SETTINGS = Optimization(
    max_steps=4,
    sequence_length=16,
    micro_batch=2,
    batch_tokens=96,
    learning_rate=3e-3,
    warmup_steps=1,
    weight_decay=0.1,
    clip_norm=0.5,
    seed=5,
)

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


@pytest.fixture
def data(tokenizer, tmp_path):
    store = tokenize(TextSource(), "zh", tokenizer, tmp_path / "cache", workers=1)
    return TextData({"zh": Packed(store, 16)}, SETTINGS)


def plain_loop(model, data):
    """Written from the definitions, without our module, optimizer groups or clipping."""
    matrices = [p for n, p in model.named_parameters() if "proj" in n or "lm_head" in n]
    others = [p for n, p in model.named_parameters() if "proj" not in n and "lm_head" not in n]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=3e-3,
        betas=(0.9, 0.95),
    )
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(step, 4, SETTINGS))
    model.train()
    batches = iter(data.train_dataloader())
    norms, losses = [], []
    for _ in range(4):
        losses.append(0.0)
        for _ in range(3):
            batch = next(batches)
            logits = model(batch["input_ids"]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
            (loss / 3).backward()
            losses[-1] += loss.item() / 3
        total = sum(p.grad.double().square().sum() for p in model.parameters()).sqrt()
        norms.append(total.item())
        for p in model.parameters():
            p.grad.mul_(min(1.0, 0.5 / (total.item() + 1e-6)))
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return norms, losses


def test_four_steps_equal_a_plain_loop(data, make_model, tmp_path):
    ours, reference = make_model(), make_model()
    norms, losses = plain_loop(reference, data)
    logged = {"train/gradient_norm": [], "train/loss": []}
    held = []

    class Logged(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            held.append(any(p.grad is not None for p in ours.parameters()))
            for name, values in logged.items():
                if trainer.global_step > len(values):
                    values.append(trainer.callback_metrics[name].item())

    fit(ours, data, tmp_path, [Logged()], progress=False)
    for (name, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        # AdamW makes much of what rounds in a small gradient; a step is 3e-3.
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5, msg=lambda m, n=name: n + m)
    assert logged["train/gradient_norm"] == pytest.approx(norms, rel=1e-4)
    assert logged["train/loss"] == pytest.approx(losses, rel=1e-5)
    assert held == [True, True, False] * 4, "gradients are let go of after the step"
    assert not ours.training


def test_no_logits_of_all_places_are_held(data, make_model, tmp_path, monkeypatch):
    chunks_of(5, monkeypatch)
    with Largest() as largest:
        fit(make_model(), data, tmp_path, progress=False)
    assert largest.values < SETTINGS.micro_batch * SETTINGS.sequence_length * SMALL["vocab_size"]


def test_a_tied_embedding_gets_no_gradient_of_its_own(data, tmp_path):
    tied = LlamaConfig(**SMALL, tie_word_embeddings=True)
    with Called() as called:
        fit(AutoModelForCausalLM.from_config(tied), data, tmp_path, progress=False)
    assert "_log_softmax_backward_data" not in called.names
    assert "embedding" in called.names
    assert "embedding_dense_backward" not in called.names


def test_nan_loss_stops_names_step_and_batch_and_keeps_the_checkpoint(data, make_model, tmp_path):
    model = make_model()

    class Poison(L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 7:
                model.lm_head.weight.data[3, 3] = float("nan")

    with pytest.raises(CheckError, match=r"the loss is nan at step 3"):
        fit(model, data, tmp_path, [Poison()], checkpoint_every=1, progress=False)
    (kept,) = (tmp_path / "checkpoints").glob("*.ckpt")
    assert kept.name == "step=2.ckpt"
    state = torch.load(kept, weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_gradient_that_is_not_finite_stops_before_the_step(data, make_model, tmp_path):
    model = make_model()
    model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckError, match=r"the gradient norm is (nan|inf) at step 1"):
        fit(model, data, tmp_path, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_dropout_depends_on_seed_and_batch_alone(make_model):
    module = CausalLM(make_model(), SETTINGS, steps=4)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    drawn = []
    for noise in range(2):
        torch.rand(noise)
        module.on_train_batch_start(torch.zeros(1), 4)
        drawn.append(torch.rand(3))
    module.on_train_batch_start(torch.zeros(1), 5)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], torch.rand(3))


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
