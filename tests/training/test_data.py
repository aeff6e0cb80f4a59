import re

import lightning as L
import pytest
from made_rehearsal import rehearse
from rich.console import Console

from freezetrain.data.packing import Packed
from freezetrain.data.texts import read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.rehearsal import Rehearsal
from freezetrain.training.data import TextData, read_data
from freezetrain.training.recipe import Rehearse, Replay, TrainRecipe, Watch


@pytest.fixture
def make_recipe(tmp_path, text_folder):
    """A recipe, changed as asked."""

    def make(settings=None, **changes):
        base = {"sequence_length": 16, "micro_batch": 4}
        return TrainRecipe(
            model=ModelSource("nowhere"),
            texts=TextSource(folder=str(text_folder), key_field="section"),
            optimization=Optimization(**{**base, **(settings or {})}),
            watch=Watch(off=True),
            cache=str(tmp_path / "cache"),
            workers=1,
            **changes,
        )

    return make


def test_one_pass_is_every_sequence_once(make_recipe, tokenizer):
    data = read_data(make_recipe(languages=["en", "zh"]), tokenizer)
    sequences = {name: len(packed) for name, packed in data.packed.items()}
    assert list(sequences) == ["en", "zh"]
    assert data.replayed == {}
    total = sum(sequences.values())
    assert data.steps == -(-total // 4)
    language, sequence = data.order.places(0, total)
    seen = set(zip(language.tolist(), sequence.tolist(), strict=True))
    assert len(seen) == total


def test_one_pass_has_what_is_replayed_on_top(make_recipe, tokenizer, text_folder):
    replay = Replay(TextSource(folder=str(text_folder)), share=0.2, until=0.5)
    data = read_data(make_recipe(languages=["zh"], replay=replay), tokenizer)
    assert list(data.replayed) == ["en", "es"]
    assert list(data.packed) == ["zh"]
    facts = data.facts()
    assert facts["zh"]["epochs"] == pytest.approx(1, abs=0.08)
    assert sum(language["share"] for language in facts.values()) == pytest.approx(1)
    assert facts["en"]["share"] + facts["es"]["share"] == pytest.approx(0.1, abs=0.02)
    assert [language["replayed"] for language in facts.values()] == [False, True, True]
    places = data.order.length
    late = data.order.places(round(places * 0.5) + 4, places)[0]
    assert set(late.tolist()) == {0}


def test_one_pass_has_what_is_rehearsed_on_top_too(
    make_recipe, tokenizer, text_folder, model_folder, tmp_path
):
    drawn = Rehearsal(rehearse(tmp_path / "drawn", model_folder, [20, 16, 7]))
    recipe = make_recipe(
        languages=["zh"],
        replay=Replay(TextSource(folder=str(text_folder)), share=0.2, until=0.5),
        rehearse=Rehearse(str(drawn.folder), share=0.3, until=0.8),
    )
    data = read_data(recipe, tokenizer, rehearsal=drawn)
    facts, rehearsed = data.facts(), data.rehearsal_facts()
    assert list(facts) == ["zh", "en", "es"]
    assert facts["zh"]["epochs"] == pytest.approx(1, abs=0.08)
    assert facts["en"]["share"] + facts["es"]["share"] == pytest.approx(0.1, abs=0.02)
    assert rehearsed["share"] == pytest.approx(0.24, abs=0.02)
    shares = [language["share"] for language in facts.values()]
    assert sum(shares) + rehearsed["share"] == pytest.approx(1)
    assert (rehearsed["sequences"], rehearsed["tokens"], rehearsed["rows"]) == (6, 78, 6)
    assert rehearsed["epochs"] == pytest.approx(rehearsed["share"] * data.order.length / 6)
    late = data.order.places(round(data.order.length * 0.8) + 4, data.order.length)[0]
    assert set(late.tolist()) == {0}
    console = Console(width=200)
    with console.capture() as shown:
        console.print(data.table())
    assert re.search(r"\(rehearsal\) +6 +78 +– +– +– +2\d\.\d%", shown.get())
    assert "the 8 likeliest tokens of each place are stored" in " ".join(shown.get().split())


def test_limits_of_steps_and_tokens(make_recipe, tokenizer):
    data = read_data(make_recipe({"max_steps": 3}, languages=["zh"]), tokenizer)
    assert (data.steps, len(data.train_dataloader())) == (3, 3)
    data = read_data(make_recipe({"max_tokens": 1000}, languages=["zh"]), tokenizer)
    assert data.steps == 16  # of 64 tokens each: rounded up


def test_weights_and_temperature_share_the_run(make_recipe, tokenizer):
    settings = {"max_steps": 200}
    data = read_data(
        make_recipe(settings, languages=["en", "zh"], weights={"en": 0.2, "zh": 0.8}), tokenizer
    )
    shares = {name: facts["share"] for name, facts in data.facts().items()}
    assert shares == pytest.approx({"en": 0.2, "zh": 0.8}, abs=0.01)
    data = read_data(make_recipe(settings, languages=["en", "zh"], temperature=2.0), tokenizer)
    facts = data.facts()
    ratio = (facts["en"]["tokens"] / facts["zh"]["tokens"]) ** 0.5
    assert facts["en"]["share"] / facts["zh"]["share"] == pytest.approx(ratio, rel=0.03)
    replay = Replay(languages=["en", "es"], weights={"en": 0.9, "es": 0.1}, share=0.5)
    data = read_data(make_recipe(settings, languages=["zh"], replay=replay), tokenizer)
    assert data.facts()["en"]["share"] == pytest.approx(0.45, abs=0.01)


def test_facts_and_table_count_what_a_plain_loop_counts(make_recipe, tokenizer, udhr):
    data = read_data(make_recipe(languages=["en", "zh"]), tokenizer)
    texts = read_languages(make_recipe().texts, ["en"])["en"]
    facts = data.facts()["en"]
    words = sum(len(text.split()) for text in texts.train)
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts.train]
    tokens = sum(len(document) + 2 for document in ids)
    size = sum(len(text.encode()) for text in texts.train)
    assert facts["documents"] == len(texts.train)
    assert facts["held_out"] == len(texts.test)
    assert (facts["tokens"], facts["bytes"], facts["words"]) == (tokens, size, words)
    assert facts["tokens_per_word"] == tokens / words
    assert facts["bytes_per_token"] == size / tokens
    assert facts["sequences"] == -(-tokens // 16)
    console = Console(width=100, record=True)
    console.print(data.table())
    shown = console.export_text()
    assert f"{tokens:,}" in shown
    assert f"{tokens / words:.2f}" in shown


def test_skipped_lines_are_counted_and_shown(make_recipe, tokenizer, text_folder):
    with (text_folder / "en.jsonl").open("a") as file:
        file.write("{broken\n")
    recipe = make_recipe(languages=["en"])
    with pytest.raises(UserError, match=r"en.jsonl line 32 is no JSON"):
        read_data(recipe, tokenizer)
    recipe.texts.bad_lines = "skip"
    data = read_data(recipe, tokenizer)
    assert data.facts()["en"]["skipped"] == 1
    console = Console(width=100, record=True)
    console.print(data.table())
    assert "bad lines skipped: 1 of en" in console.export_text()


@pytest.mark.parametrize("more", [{"weights": {"zh": 1.0}}, {"replay": {"weights": {"zh": 1.0}}}])
def test_weights_of_other_languages_are_refused_before_texts_are_read(make_recipe, tokenizer, more):
    if "replay" in more:
        more = {"replay": Replay(languages=["nowhere too"], **more["replay"])}
    with pytest.raises(UserError, match="weights has language 'zh', which is not read"):
        read_data(make_recipe(languages=["nowhere"], **more), tokenizer)


def test_a_batch_that_the_ranks_cannot_share_is_refused_at_once(make_recipe, tokenizer):
    recipe = make_recipe(languages=["nowhere"])
    with pytest.raises(UserError, match="2 devices with micro_batch 4"):
        read_data(recipe, tokenizer, world=2)


def test_replayed_languages_are_not_those_trained_on(make_recipe, tokenizer, text_folder):
    texts = TextSource(folder=str(text_folder))
    with pytest.raises(UserError, match="'zh' is both trained on and replayed"):
        read_data(make_recipe(replay=Replay(texts, languages=["zh"])), tokenizer)
    with pytest.raises(UserError, match="holds no language but those trained on"):
        read_data(make_recipe(replay=Replay(texts)), tokenizer)


def test_weights_of_other_languages_are_refused(make_recipe, tokenizer):
    with pytest.raises(UserError, match=r"weights has language 'es'.*languages are en zh"):
        read_data(make_recipe(languages=["en", "zh"], weights={"en": 0.5, "es": 0.5}), tokenizer)
    replay = Replay(languages=["en", "es"], weights={"en": 1.0})
    with pytest.raises(UserError, match=r"replay.weights must name every language; 'es'"):
        read_data(make_recipe(languages=["zh"], replay=replay), tokenizer)


def test_too_little_text_names_the_language(make_recipe, tokenizer):
    with pytest.raises(UserError, match="the training part of language 'zh' has"):
        read_data(make_recipe({"sequence_length": 2**15}, languages=["zh"]), tokenizer)


def test_rank_and_world_are_the_trainers(make_store):
    class Trainer:
        global_rank, world_size = 1, 2

    packed = {"zh": Packed(make_store([[n, n, n, 1] for n in range(40)]), 8)}
    settings = Optimization(max_steps=2, sequence_length=8, micro_batch=2, batch_tokens=32)
    data = TextData(packed, settings)
    assert isinstance(data, L.LightningDataModule)
    alone = list(data.train_dataloader())
    data.trainer = Trainer()
    second = list(data.train_dataloader())
    assert [b["input_ids"].tolist() for b in second] == [b["input_ids"].tolist() for b in alone][
        1::2
    ]
