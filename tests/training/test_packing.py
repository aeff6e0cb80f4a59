import pytest
import torch
from transformers import PreTrainedTokenizerFast

from freezetrain.errors import UserError
from freezetrain.training.packing import pack


def by_hand(texts, tokenizer, length):
    """Plain loop: one flat list, cut."""
    flat = []
    for text in texts:
        flat.append(tokenizer.bos_token_id)
        flat.extend(tokenizer(text, add_special_tokens=False)["input_ids"])
        flat.append(tokenizer.eos_token_id)
    return [flat[i : i + length] for i in range(0, len(flat) - length + 1, length)], flat


def test_every_token_once_in_order_but_the_dropped_tail(udhr, tokenizer):
    texts = udhr["zh"].train
    packed = pack(texts, tokenizer, 32, "zh")
    rows, flat = by_hand(texts, tokenizer, 32)
    assert packed.sequences.tolist() == rows
    assert packed.tokens == len(flat)
    assert packed.dropped == len(flat) - 32 * len(rows)
    assert packed.documents == len(texts)
    assert packed.bytes == sum(len(text.encode()) for text in texts)


def test_one_separator_where_bos_is_eos(tokenizer):
    gpt2 = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>", eos_token="</s>"
    )
    ids = gpt2("a b", add_special_tokens=False)["input_ids"]
    packed = pack(["a b", "a b"], gpt2, 2 * len(ids) + 2, "test")
    assert packed.sequences.tolist() == [[*ids, 1, *ids, 1]]


def test_text_shorter_than_a_sequence_is_refused(tokenizer):
    with pytest.raises(UserError, match=r"language 'xx' has \d+ tokens, fewer than one sequence"):
        pack(["short"], tokenizer, 64, "language 'xx'")


def test_tokenizer_without_eos_is_refused(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        pack(["text"], bare, 2, "test")


def test_sequences_are_int32(udhr, tokenizer):
    assert pack(udhr["en"].train, tokenizer, 16, "en").sequences.dtype == torch.int32
