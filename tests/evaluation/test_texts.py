"""What was read, against counting characters and bytes by hand."""

import json
from dataclasses import asdict

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from freezetrain.evaluation import encode_documents
from freezetrain.evaluation.texts import text_facts, texts_table

TEXTS = {"en": ["hello hello", "all well"], "zh": ["你好", "hello 你"]}


def fast(backend, **special):
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


@pytest.fixture(scope="module")
def sentencepiece():
    """Characters and the 256 bytes, as Llama 2's: what it does not know falls back to bytes."""
    characters = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁helowa"]
    vocabulary = {token: number for number, token in enumerate(characters)}
    bpe = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    return fast(bpe, bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def words():
    vocabulary = {"<unk>": 0, "</s>": 1, "hello": 2, "all": 3}
    level = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    level.pre_tokenizer = pre_tokenizers.Whitespace()
    return fast(level, eos_token="</s>", unk_token="<unk>")


def rows_of(texts, tokenizer):
    documents = {name: encode_documents(of, tokenizer) for name, of in texts.items()}
    return {facts.language: asdict(facts) for facts in text_facts(documents, tokenizer)}


def test_counts_are_of_the_texts_without_the_context_token(words):
    rows = rows_of(TEXTS, words)
    assert rows["en"] == {
        "language": "en", "documents": 2, "bytes": 19, "tokens": 4, "unknown": 1 / 4,
        "byte_fallback": None, "left_out": 0, "left_out_first": "",
    }  # fmt: skip
    assert (rows["zh"]["bytes"], rows["zh"]["tokens"], rows["zh"]["unknown"]) == (15, 3, 2 / 3)
    json.dumps(list(rows.values()), allow_nan=False)


def test_sentencepiece_falls_back_to_bytes(sentencepiece):
    rows = rows_of(TEXTS, sentencepiece)
    assert rows["en"]["byte_fallback"] == 0
    # ▁ and 2 characters of 3 bytes; ▁hello, ▁ and 3 bytes.
    assert rows["zh"]["tokens"] == 7 + 10
    assert rows["zh"]["byte_fallback"] == 9 / 17
    assert rows["zh"]["unknown"] == 0


def test_byte_level_tokens_that_are_no_whole_characters(tokenizer, udhr):
    """Against the tokens' texts as the tokenizer decodes them: a broken character is U+FFFD."""
    texts = {name: list(language.test) for name, language in udhr.items()}
    rows = rows_of(texts, tokenizer)
    for name, of in texts.items():
        ids = [i for text in of for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
        broken = sum("�" in tokenizer.decode([i]) for i in ids)
        assert rows[name]["byte_fallback"] == pytest.approx(broken / len(ids))
        assert rows[name]["tokens"] == len(ids)
        assert rows[name]["bytes"] == sum(len(text.encode()) for text in of)
        assert rows[name]["unknown"] is None
    assert rows["zh"]["byte_fallback"] > 0.5
    assert rows["en"]["byte_fallback"] < 0.01


def test_added_tokens_are_whole_whatever_they_are_spelled_with():
    """An added é is the letter; in the alphabet of bytes it would be the byte 0xE9 alone."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    tokenizer = fast(bpe, bos_token="<s>")
    assert rows_of({"fr": ["é!"]}, tokenizer)["fr"]["byte_fallback"] == 2 / 3
    tokenizer.add_tokens(["é"])
    assert rows_of({"fr": ["é!"]}, tokenizer)["fr"]["byte_fallback"] == 0


def test_the_table_shows_each_row(words):
    documents = {name: encode_documents(texts, words) for name, texts in TEXTS.items()}
    english, _ = texts_table(text_facts(documents, words), "texts").cells()
    written = [cell.text for cell in english]
    assert written == ["English (en)", "2", "19", "4", "4.75", "25.0%", "–"]
