import copy

import pytest
from transformers import PreTrainedTokenizerFast

from freezetrain.data.tokens import encode, tokenizer_digest
from freezetrain.errors import UserError


def test_one_separator_where_bos_is_eos(tokenizer):
    gpt2 = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>", eos_token="</s>"
    )
    ids = tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert list(encode(["a b", "a b"], gpt2)) == [[*ids, 1]] * 2
    assert list(encode(["a b"], tokenizer)) == [[0, *ids, 1]]


def test_a_text_that_spells_a_special_token_does_not_become_one(tokenizer):
    text = "end with </s> and <s>"
    assert 1 in tokenizer(text, add_special_tokens=False)["input_ids"]  # the danger is there
    (ids,) = encode([text], tokenizer)
    assert [ids[0], ids[-1]] == [0, 1]
    assert not {0, 1} & set(ids[1:-1])
    assert tokenizer.decode(ids[1:-1]) == text
    # Nor does it change what the tokenizer does for others.
    assert 1 in tokenizer(text, add_special_tokens=False)["input_ids"]


def test_tokenizer_without_eos_is_refused(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        list(encode(["text"], bare))


def test_digest_is_of_what_decides_the_ids(tokenizer, tmp_path):
    digest = tokenizer_digest(tokenizer)
    tokenizer.save_pretrained(tmp_path / "moved")
    moved = PreTrainedTokenizerFast.from_pretrained(tmp_path / "moved")
    moved(["a b c d e"], truncation=True, max_length=3)
    assert 'truncation":{' in moved.backend_tokenizer.to_str().replace(" ", "")
    assert tokenizer_digest(moved) == digest
    list(encode(["a"], moved))
    assert tokenizer_digest(moved) == digest
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["freiheit"])
    assert tokenizer_digest(other) != digest
    backwards = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>", eos_token="<s>"
    )
    assert tokenizer_digest(backwards) != digest
