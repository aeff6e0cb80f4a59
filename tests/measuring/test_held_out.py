"""Documents of which a tokenizer leaves nothing are left out, counted and named, for all models."""

import json

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from freezetrain.data.tokens import tokenize
from freezetrain.errors import UserError
from freezetrain.evaluation.texts import text_facts, texts_table
from freezetrain.measuring.held_out import held_out_documents, remarks
from freezetrain.recipe.sources import EvaluationTexts, TextSource
from freezetrain.tables import to_markdown

TEXTS = [f"haki ya mtu namba {number} katika nchi yake" for number in range(10)]
NOTHING = "\u200b"  # which BERT's normalizer takes away


@pytest.fixture(scope="module")
def wordpiece():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]"
    )


@pytest.fixture
def evaluation(tmp_path):
    for language, texts in (("es", TEXTS), ("sw", [*TEXTS[:4], NOTHING, *TEXTS[4:], NOTHING])):
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / f"{language}.jsonl").write_text(lines)
    return EvaluationTexts(TextSource(folder=str(tmp_path), test_one_in=1))


def test_they_are_left_out_and_named(evaluation, wordpiece, tmp_path):
    documents = held_out_documents(evaluation, wordpiece)
    assert {name: len(texts) for name, texts in documents.items()} == {"es": 10, "sw": 10}
    assert documents["sw"] == documents["es"]
    facts = {row.language: row for row in text_facts(documents, wordpiece)}
    assert (facts["es"].left_out, facts["sw"].left_out) == (0, 2)
    places = [f"{tmp_path}/sw.jsonl line {n}" for n in (5, 12)]
    assert facts["sw"].left_out_first == "; ".join(places)
    table = to_markdown(texts_table([*facts.values()], "texts"))
    assert "2 of sw" in table
    assert "sw.jsonl line 5" in table


def test_a_file_called_as_a_figure_of_all_languages_is_refused_unread(
    evaluation, wordpiece, tmp_path
):
    (tmp_path / "es.jsonl").write_text("no JSON")
    (tmp_path / "mean.jsonl").write_text("no JSON")
    with pytest.raises(UserError, match="a language is called 'mean', which is the name of a fig"):
        held_out_documents(evaluation, wordpiece)


def test_verbs_without_a_table_say_what_is_not_evaluated(evaluation, wordpiece, tmp_path):
    (tmp_path / "zh.jsonl").symlink_to(tmp_path / "nowhere")
    left_out, not_read = remarks(evaluation, wordpiece, held_out_documents(evaluation, wordpiece))
    assert "nothing to predict, left out: 2 of sw (first" in left_out
    assert not_read == "files not read: zh.jsonl (a link to nothing)"


def test_what_one_model_cannot_be_asked_none_is(evaluation, wordpiece, tokenizer):
    assert len(held_out_documents(evaluation, tokenizer)["sw"]) == 12
    both = held_out_documents(evaluation, tokenizer, [wordpiece])
    assert len(both["sw"]) == 10
    assert both["sw"] == held_out_documents(evaluation, tokenizer)["es"]
    assert both["sw"].left_out == [4, 11]


def test_a_language_of_such_documents_alone_is_refused(wordpiece, tmp_path):
    (tmp_path / "sw.jsonl").write_text(json.dumps({"text": NOTHING}) + "\n")
    source = EvaluationTexts(TextSource(folder=str(tmp_path), test_one_in=1))
    with pytest.raises(UserError, match=r"language 'sw': the tokenizer makes fewer than 1 tokens"):
        held_out_documents(source, wordpiece)
    source.texts.test_one_in = 0
    with pytest.raises(UserError, match="no token of any training document of language 'sw'"):
        tokenize(source.texts, "sw", wordpiece, tmp_path / "cache", workers=1)
