"""What rehearsal does to a run: what is logged, what is bad, and that it keeps what it is for."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from made_rehearsal import rehearse
from planted import (
    LENGTH,
    NEW,
    OLD,
    planted_model,
    planted_tokenizer,
    sentences,
    token_ids,
    write_texts,
)
from transformers import AutoModelForCausalLM

from freezetrain.data.rehearsed import STORED
from freezetrain.errors import CheckError, UserError
from freezetrain.nll import token_nll
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.rehearsal import Rehearsal
from freezetrain.rehearsal.kl import BucketKL
from freezetrain.training import train as verb
from freezetrain.training.module import CausalLM
from freezetrain.training.recipe import Rehearse, TrainRecipe, Watch
from freezetrain.training.rehearsed import Compared


@pytest.fixture(scope="module")
def drawn(model_folder, make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return rehearse(
        folder, model_folder, [20, 16, 5, 9], model=make_model(seed=7, initializer_range=0.2)
    )


def recipe_of(model_folder, drawn, **more):
    settings = {
        "max_steps": 6,
        "sequence_length": 16,
        "micro_batch": 2,
        "batch_tokens": 64,
        "learning_rate": 3e-3,
        "warmup_steps": 1,
        "seed": 1,
        "precision": "32-true",
    }
    return TrainRecipe(
        ModelSource(str(model_folder)),
        languages=["zh"],
        rehearse=Rehearse(str(drawn), share=0.3),
        optimization=Optimization(**{**settings, **more}),
        watch=Watch(off=True),
        workers=1,
    )


def run(recipe, folder):
    return verb.run(recipe, folder, table=False, progress=False).results


class Reference(L.Callback):
    """Sums of NLL and of KL at each micro-batch, from the definitions, and what is logged."""

    def __init__(self):
        self.steps, self.logged = [[]], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        with torch.no_grad():
            log_q = module.model(input_ids=batch["input_ids"]).logits.double().log_softmax(2)
        here = batch["labels"] != -100
        nll = -log_q[here].gather(1, batch["labels"][here][:, None]).sum().item()
        rows = log_q.flatten(0, 1)[batch["kl_places"]]
        logs, rest = (batch[name].view(torch.float16).double() for name in STORED[1:])
        p = torch.cat([logs, rest[:, None]], 1).softmax(1)
        top = rows.gather(1, batch["top_tokens"].long())
        q = torch.cat([top, torch.log1p(-top.exp().sum(1, keepdim=True))], 1)
        kl = (p * (p.log() - q)).sum().item()
        self.steps[-1].append((nll, int(here.sum()), kl, len(rows)))

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == len(self.steps):
            self.logged.append(dict(trainer.callback_metrics))
            trainer.callback_metrics.pop("train/rehearsal_kl", None)
            self.steps.append([])


def test_logged_are_the_mean_nll_of_labels_and_the_mean_kl_of_places(
    model_folder, drawn, tmp_path, monkeypatch
):
    reference = Reference()
    before = verb.make_parts

    def with_reference(*args):
        parts = before(*args)
        in_order = type(parts).in_order
        monkeypatch.setattr(type(parts), "in_order", lambda self: [*in_order(self), reference])
        return parts

    monkeypatch.setattr(verb, "make_parts", with_reference)
    results = run(recipe_of(model_folder, drawn), tmp_path / "run")
    totals = [[sum(column) for column in zip(*step, strict=True)] for step in reference.steps[:6]]
    assert sum(places > 0 for *_, places in totals) > 0
    for (nll, labels, kl, places), logged in zip(totals, reference.logged, strict=True):
        assert logged["train/loss"].item() == pytest.approx(nll / labels, rel=1e-5)
        if places:
            assert logged["train/rehearsal_kl"].item() == pytest.approx(kl / places, rel=1e-4)
    kl, places = totals[-1][2:]
    for *_, more, further in reversed(totals[:-1]):
        if places < sum(step[3] for step in totals) / 10:
            kl, places = kl + more, places + further
    assert results["rehearsal"]["kl"] == pytest.approx(kl / places, rel=1e-4)


def test_a_kl_that_is_not_finite_stops_the_run(model_folder, drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(BucketKL, "__call__", lambda self, log_q, *_: log_q.sum(1) * torch.inf)
    with pytest.raises(CheckError, match=r"the loss is (nan|-?inf) at step"):
        run(recipe_of(model_folder, drawn), tmp_path / "run")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_what_is_stored_is_not_rounded_on_the_way(
    model_folder, drawn, tmp_path, monkeypatch, precision
):
    seen = set()
    terms = Compared.terms

    def noted(self, labels, batch, *more):
        seen.update(batch["rest_log_prob"].view(torch.float16).tolist())
        return terms(self, labels, batch, *more)

    monkeypatch.setattr(Compared, "terms", noted)
    results = run(recipe_of(model_folder, drawn, precision=precision), tmp_path / "run")
    stored = {value for row in Rehearsal(drawn) for value in row["rest_log_prob"].tolist()}
    assert len(seen) > 20
    assert seen <= stored
    assert results["rehearsal"]["kl"] > 0


def test_another_base_on_resuming_is_refused_and_the_checkpoint_stays(
    model_folder, drawn, make_model, tmp_path, monkeypatch
):
    base = tmp_path / "base"
    shutil.copytree(model_folder, base)
    recipe = replace(recipe_of(base, drawn), checkpoint_every=2)
    started = CausalLM.on_train_batch_start

    def dies(module, batch, batch_idx):
        if batch_idx == 7:
            raise KeyError("the machine")
        started(module, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "on_train_batch_start", dies)
    with pytest.raises(KeyError):
        run(recipe, tmp_path / "run")
    monkeypatch.setattr(CausalLM, "on_train_batch_start", started)
    weights = (base / "model.safetensors").read_bytes()
    make_model(seed=1).save_pretrained(base)
    with pytest.raises(UserError, match="was drawn by another model"):
        run(recipe, tmp_path / "run")
    (base / "model.safetensors").write_bytes(weights)
    assert run(recipe, tmp_path / "run")["resumed_from"] == "step=2.ckpt"


def test_means_since_they_were_taken_last_and_of_the_last_tenth():
    compared = Compared()
    assert (compared.take(1), compared.last) == (None, None)
    compared.add(3.0, 4)
    compared.add(float("nan"), 9)  # a bad step
    compared.add(1.0, 4)
    assert compared.take(10) == 0.5
    assert compared.take(20) is None
    compared.add(2.0, 2)
    resumed = Compared()
    resumed.load_state_dict(json.loads(json.dumps(compared.state_dict())))
    for one in (compared, resumed):
        assert one.last == 1.0
        assert one.take(30) == 1.0
        assert one.history == [(10, 0.5, 8), (30, 1.0, 2)]


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    model = planted_model()
    model.save_pretrained(folder / "base")
    planted_tokenizer().save_pretrained(folder / "base")
    return SimpleNamespace(
        folder=folder, model=model, texts=write_texts(folder / "texts", documents=72)
    )


def test_the_base_own_words_keep_the_old_languages_and_others_do_not(planted, tmp_path):
    """Rehearsed by KL to the base, they forget little; to a random model, no less than by none."""
    torch.manual_seed(1)
    random = AutoModelForCausalLM.from_config(planted.model.config).eval()
    folders = {
        "base": rehearse(tmp_path / "base", planted.folder / "base", [LENGTH] * 40),
        "random": rehearse(
            tmp_path / "random", planted.folder / "base", [LENGTH] * 40, model=random
        ),
    }
    old = token_ids([text for language in OLD for text in sentences(language, 40, seed=7)])
    new = token_ids(sentences(NEW, 40, seed=7))

    def losses(model):
        with torch.no_grad():
            return [
                token_nll(model(input_ids=rows).logits, rows).mean().item() for rows in (old, new)
            ]

    before = losses(planted.model)
    forgotten, gained = {}, {}
    for name in ("none", *folders):
        recipe = TrainRecipe(
            ModelSource(str(planted.folder / "base")),
            TextSource(folder=str(planted.texts)),
            languages=[NEW],
            rehearse=Rehearse(str(folders[name]), share=0.25) if name in folders else None,
            optimization=Optimization(
                max_steps=16, sequence_length=LENGTH, micro_batch=16, warmup_steps=2,
                learning_rate=8e-3,
            ),
            watch=Watch(off=True),
            workers=1,
        )  # fmt: skip
        run(recipe, tmp_path / f"run-{name}")
        after = losses(AutoModelForCausalLM.from_pretrained(tmp_path / f"run-{name}" / "model"))
        forgotten[name], gained[name] = after[0] - before[0], before[1] - after[1]
    assert forgotten["base"] < 0.3 * forgotten["none"]
    assert forgotten["random"] > 0.8 * forgotten["none"]
    assert gained["base"] > 0.8 * gained["none"] > 0.3
