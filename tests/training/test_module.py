"""The module trains as a plain PyTorch loop does."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.optim.lr_scheduler import LambdaLR

from freezetrain.data.packing import Packed
from freezetrain.data.tokens import tokenize
from freezetrain.errors import CheckError
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

    class Logged(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            for name, values in logged.items():
                if trainer.global_step > len(values):
                    values.append(trainer.callback_metrics[name].item())

    fit(ours, data, tmp_path, [Logged()], progress=False)
    for (name, mine), theirs in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: n + m)
    assert logged["train/gradient_norm"] == pytest.approx(norms, rel=1e-4)
    assert logged["train/loss"] == pytest.approx(losses, rel=1e-5)
    assert not ours.training


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
