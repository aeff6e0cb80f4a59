"""Texts as tokens, and windows against lm-evaluation-harness's own."""

import logging

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from freezetrain.errors import UserError
from freezetrain.evaluation import Document, encode_documents
from freezetrain.evaluation.documents import batches, windows

LINES = ["All human beings are born free", "Alle Menschen sind frei geboren", "人人生而自由"]


def byte_level_bpe(**special):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    # Like Llama's and BERT's: special tokens of its own accord, unless told not to.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.mark.parametrize(
    ("special", "context"),
    [
        ({"bos_token": "<s>", "eos_token": "</s>"}, "<s>"),
        ({"bos_token": "<s>"}, "<s>"),
        ({"eos_token": "</s>"}, "</s>"),
    ],
)
def test_every_token_is_predicted_from_one_context_token(special, context):
    tokenizer = byte_level_bpe(**special)
    for text, document in zip(LINES, encode_documents(LINES, tokenizer), strict=True):
        first, *predicted = document.ids
        assert first == tokenizer.convert_tokens_to_ids(context)
        assert tokenizer.decode(predicted) == text
        assert document.tokens == len(predicted)
        assert document.bytes == len(text.encode())


def test_without_bos_and_eos_the_first_token_is_the_context():
    tokenizer = byte_level_bpe()
    for text, document in zip(LINES, encode_documents(LINES, tokenizer), strict=True):
        assert tokenizer.decode(document.ids) == text
        assert document.tokens == len(document.ids) - 1
        assert document.bytes == len(text.encode())


def test_a_text_longer_than_the_model_gives_no_warning(recwarn, caplog):
    # transformers' logger does not propagate, so that caplog must be put in by hand.
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        tokenizer = byte_level_bpe(bos_token="<s>", model_max_length=4)
        (document,) = encode_documents([LINES[0]], tokenizer)
    finally:
        logger.removeHandler(caplog.handler)
    assert document.tokens > 4
    assert [str(warning.message) for warning in recwarn] == []
    assert caplog.messages == []


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_document_is_refused_by_its_place(empty):
    with pytest.raises(UserError, match=r"document 1 \(counted from 0\) of 3"):
        encode_documents([LINES[0], empty, LINES[1]], byte_level_bpe(bos_token="<s>"))


def test_nothing_to_predict_is_refused():
    (document,) = encode_documents(["A"], byte_level_bpe(bos_token="<s>"))
    assert document.tokens == 1
    with pytest.raises(UserError, match=r"fewer than 2 tokens of each of 1 documents"):
        encode_documents(["A"], byte_level_bpe())


def test_a_document_without_anything_to_predict_is_left_out_and_counted():
    documents = encode_documents(["A", LINES[0], "B", LINES[1]], byte_level_bpe())
    assert documents == encode_documents([LINES[0], LINES[1]], byte_level_bpe())
    assert documents.left_out == [0, 2]


def test_no_texts_are_no_documents():
    assert encode_documents([], byte_level_bpe(bos_token="<s>")) == []


@pytest.mark.parametrize(("ids", "size"), [([], 1), ([5], 1), ([5, 6], 0)])
def test_documents_without_tokens_or_bytes_are_refused(ids, size):
    with pytest.raises(UserError, match=f"got {len(ids)} ids and {size} bytes"):
        Document(ids=ids, bytes=size)


CASES = [
    (tokens, max_length, overlap)
    for tokens in (1, 2, 7, 8, 9, 23, 64)
    for max_length in (1, 2, 8, 64)
    for overlap in (1, 3, 8)
    if overlap <= max_length
]


def cut(tokens, max_length, overlap):
    ids = list(range(100, 101 + tokens))
    return ids, list(windows(3, Document(ids, 1), max_length, overlap))


@pytest.mark.parametrize(("tokens", "max_length", "overlap"), CASES)
def test_they_are_those_of_lm_evaluation_harness(tokens, max_length, overlap):
    harness = pytest.importorskip("lm_eval.utils", reason="lm_eval is not installed")
    ids, found = cut(tokens, max_length, overlap)
    theirs = harness.get_rolling_token_windows(ids[1:], ids[0], max_length, overlap)
    ours = [(w.ids[:-1], w.ids[len(w.ids) - w.predicted :]) for w in found]
    assert ours == [(list(given), list(predicted)) for given, predicted in theirs]


@pytest.mark.parametrize(("tokens", "max_length", "overlap"), CASES)
def test_each_token_is_predicted_once_from_what_stands_before_it(tokens, max_length, overlap):
    ids, found = cut(tokens, max_length, overlap)
    assert [i for w in found for i in w.ids[len(w.ids) - w.predicted :]] == ids[1:]
    for number, window in enumerate(found):
        assert window.document == 3
        assert len(window.ids) - 1 <= max_length
        start = ids.index(window.ids[0])
        assert window.ids == ids[start : start + len(window.ids)]
        context = len(window.ids) - window.predicted
        assert context >= (overlap if number else 1)


def test_batches_hold_all_in_order_and_keep_to_the_budget():
    lengths = [9, 9, 7, 4, 4, 4, 2, 2, 2, 2]
    every = [next(windows(n, Document(list(range(x)), 1), 64)) for n, x in enumerate(lengths)]
    for budget in (1, 8, 17, 1000):
        found = list(batches(every, budget))
        assert [window for batch in found for window in batch] == every
        for batch in found:
            assert len(batch) == 1 or len(batch) * (len(batch[0].ids) - 1) <= budget
