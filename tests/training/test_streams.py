"""`freezetrain train` on texts without an end: as on one rank, stopped and resumed, and shown."""

import re

import pytest
import torch
from command_runs import Run, start

from freezetrain.cli import main
from freezetrain.data.streamed import Ahead
from freezetrain.data.texts import BUILT_IN, read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.mapping import build
from freezetrain.recipe.sources import TextSource
from freezetrain.training.data import read_data
from freezetrain.training.recipe import TrainRecipe

TEXTS = {"folder": str(BUILT_IN), "key_field": "section"}


@pytest.fixture
def recipe(model_folder, tmp_path):
    return {
        "model": {"path": str(model_folder)},
        "texts": {**TEXTS, "streaming": True},
        "languages": ["zh", "tr"],
        "weights": {"zh": 0.75, "tr": 0.25},
        "replay": {
            "texts": {**TEXTS, "streaming": True, "bad_lines": "skip"},
            "languages": ["en"],
            "share": 0.25,
            "until": 0.5,
        },
        "optimization": {
            "max_steps": 8, "sequence_length": 32, "document_mask": True, "micro_batch": 2,
            "batch_tokens": 256, "learning_rate": 0.01, "warmup_steps": 2,
        },
        "watch": {"texts": TEXTS, "languages": ["en", "zh"], "every_n_steps": 4, "max_length": 64},
        "checkpoint_every": 100,
        "cache": str(tmp_path / "cache"),
        "workers": 1,
    }  # fmt: skip


def test_shares_are_kept_and_no_held_out_document_is_trained_on(recipe, tokenizer, monkeypatch):
    monkeypatch.setattr(Ahead, "apart", False)
    recipe["optimization"] |= {"max_steps": 200, "sequence_length": 16, "document_mask": False}
    data = read_data(build(TrainRecipe, recipe, ""), tokenizer)
    assert data.steps == 200
    before = data.facts()["zh"]
    assert (before["documents"], before["sequences"], before["epochs"]) == (None, None, None)
    shares = {name: facts["share"] for name, facts in data.facts().items()}
    expected = {"zh": 0.75 * 0.875, "tr": 0.25 * 0.875, "en": 0.125}
    assert shares == pytest.approx(expected, abs=0.005)
    order, seen = data.order, {}
    for batch in data.train_dataloader():
        for row in batch["input_ids"].tolist():
            seen.setdefault(len(seen), row)
    languages, sequences = order.places(0, order.length)
    for number, name in enumerate(order.languages):
        kept = read_languages(TextSource(**TEXTS), [name])[name]
        mine = {int(sequences[p]): seen[p] for p in range(len(seen)) if languages[p] == number}
        stream = [token for n in range(100) for token in mine.get(n, [None] * 16)]
        documents = [
            [0, *tokenizer(t, add_special_tokens=False)["input_ids"], 1] for t in kept.train
        ]
        whole = [token for document in documents for token in document] * 10
        pairs = zip(stream, whole, strict=False)
        assert all(token is None or token == right for token, right in pairs)
        assert sum(token is not None for token in stream) > 500
    facts = data.facts()["zh"]
    kept = read_languages(TextSource(**TEXTS), ["zh"])["zh"]
    rounds = facts["rounds"]
    assert rounds >= 1
    assert rounds * len(kept.train) <= facts["documents"] <= (rounds + 1) * len(kept.train)
    assert "epochs" in "".join(column.title for column in data.table().columns)


def test_several_streams_need_weights(recipe, tokenizer):
    del recipe["weights"]
    with pytest.raises(UserError, match=r"of 2 languages are streamed.*give weights, a share for"):
        read_data(build(TrainRecipe, recipe, ""), tokenizer)
    recipe |= {"languages": ["zh"], "replay": {"texts": recipe["texts"], "languages": ["en", "tr"]}}
    with pytest.raises(UserError, match=r"give replay\.weights, a share for each of en tr"):
        read_data(build(TrainRecipe, recipe, ""), tokenizer)
    recipe["languages"] = ["zhh"]
    recipe["replay"] = None
    with pytest.raises(UserError, match="no texts for language 'zhh'"):
        read_data(build(TrainRecipe, recipe, ""), tokenizer)


def test_a_stream_is_shown(recipe, model_folder, capsys):
    words = f"--model {model_folder} --texts.folder {BUILT_IN} --texts.streaming true --dry_run"
    more = "--languages [ar] --optimization.max_steps 9 --optimization.sequence_length 32 --show 2"
    with pytest.raises(SystemExit) as stopped:
        main(["train", *words.split(), *more.split(), "--watch.off", "true"])
    assert not stopped.value.code
    said = capsys.readouterr().out
    shown = re.findall(r"(?m)^place (\d+) of 72: ar, trained on; sequence \d+$", said)
    assert shown == ["1", "2"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["ddp", "zero-2", "fsdp2"])
def test_stopped_and_resumed_by_other_numbers_of_ranks(recipe, tmp_path, kind):
    """Another process reads: one rank to the midst of step 3, two to that of step 6, one on."""
    alone = Run(tmp_path / "alone", recipe)
    start(alone, world=1)
    run = Run(tmp_path / "run", {**recipe, "engine": {"kind": kind}})
    start(run, world=1, stop_in=3)
    start(run, world=2, stop_in=6)
    start(run, world=1)
    assert run.sequences == alone.sequences
    assert run.results["resumed_from"] == "step=6.ckpt"
    assert run.results["data"] == alone.results["data"]
    for name, value in run.weights.items():
        torch.testing.assert_close(value, alone.weights[name], rtol=1e-4, atol=2e-5, msg=name)
