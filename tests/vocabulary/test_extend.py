"""`freezetrain extend`: old rows keep their bits, new rows are means, text is split as before."""

import json
import shutil
from collections import Counter
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from freezetrain.data.texts import read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.vocabulary import extend
from freezetrain.vocabulary.learned_tokens import learn_tokens
from freezetrain.vocabulary.recipe import ExtendRecipe


@pytest.fixture(scope="module")
def swahili():
    """A language that the tokenizer was not made of."""
    return read_languages(TextSource(), ["sw"])["sw"]


def byte_fallback_tokenizer() -> Tokenizer:
    """As Llama 2's: no words but by the sign for a space, bytes for unknown characters."""
    letters = [*"\u2581abcdefghijklmnopqrstuvwxyz"]
    tokens = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "th", "the"]
    bpe = models.BPE(
        {token: number for number, token in enumerate(tokens)},
        [("t", "h"), ("th", "e")],
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


def by_plain_counting(tokenizer, texts, count):
    """Byte pair encoding by counting all pairs anew for each merge."""
    words = Counter()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
            words[tuple(token.value for token in tokenizer.model.tokenize(word))] += 1
    learned = []
    for _ in range(count):
        pairs = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append("".join(best))
        merged = Counter()
        for word, times in words.items():
            parts = list(word)
            for place in range(len(parts) - 1):
                if tuple(parts[place : place + 2]) == best:
                    parts[place : place + 2] = ["".join(best), None]
            merged[tuple(part for part in parts if part is not None)] += times
        words = merged
    return learned


def test_learned_tokens_are_those_of_plain_counting(tokenizer, swahili):
    backend = tokenizer.backend_tokenizer
    learned = learn_tokens(backend, swahili.train, 60)
    assert learned.tokens == by_plain_counting(backend, swahili.train, 60)
    assert ["".join(pair) for pair in learned.merges] == learned.tokens


def test_text_is_split_as_before_and_then_joined(tokenizer, swahili, udhr):
    learned = learn_tokens(tokenizer.backend_tokenizer, swahili.train, 60)
    extended = extend.with_learned_tokens(tokenizer, learned)
    assert all(extended.get_vocab()[token] == n for token, n in tokenizer.get_vocab().items())
    assert (extended.bos_token_id, extended.eos_token_id) == (0, 1)
    shorter = 0
    for text in [*swahili.test, *udhr["en"].test, *udhr["zh"].test]:
        before, after = tokenizer.tokenize(text), extended.tokenize(text)
        edges = {sum(map(len, before[:n])) for n in range(len(before) + 1)}
        assert {sum(map(len, after[:n])) for n in range(len(after) + 1)} <= edges
        assert extended.decode(extended.encode(text)) == tokenizer.decode(tokenizer.encode(text))
        shorter += len(after) < len(before)
    assert shorter


def test_characters_that_were_bytes_are_learned(tmp_path):
    backend = byte_fallback_tokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    texts = ["\u4eba\u6743 the \u4eba\u6743 the cat", "\u4eba\u6743 the \u4eba"]
    learned = learn_tokens(backend, texts, 5)
    # Each saves as often as it occurs, 4, 3, 4, 3 and 3 times, and a character 2 tokens each time.
    assert learned.tokens == [
        "\u4eba",
        "\u6743",
        "\u2581\u4eba",
        "\u2581the",
        "\u2581\u4eba\u6743",
    ]
    extended = extend.with_learned_tokens(tokenizer, learned)
    assert extended.tokenize("\u4eba\u6743 the") == ["\u2581\u4eba\u6743", "\u2581the"]
    assert extended.decode(extended.encode(texts[0])) == texts[0]
    expected = ["\u2581", *(f"<0x{byte:02X}>" for byte in "\u4eba\u6743".encode())]
    assert tokenizer.convert_ids_to_tokens(extend._pieces_of(learned, tokenizer)[4]) == expected


@pytest.mark.parametrize(
    ("tied", "said"), [(True, True), (False, False), (False, True)], ids=["tied", "untied", "two"]
)
def test_rows_of_a_learned_vocabulary(tmp_path, tokenizer, make_model, tied, said):
    """Two: config.json says that head and embedding are one, and its files hold two."""
    base = make_model(tie_word_embeddings=tied).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    base.config.tie_word_embeddings = said
    base.config.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    recipe = ExtendRecipe(
        ModelSource(str(tmp_path / "base")), learn=30, language="sw", multiple_of=64
    )
    outcome = extend.run(recipe, tmp_path)
    extended = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert model.config.vocab_size == outcome.results["rows"] == 448
    assert model.config.tie_word_embeddings == tied
    assert len(extended) == 430
    names = ["model.embed_tokens.weight"] + ([] if tied else ["lm_head.weight"])
    before, after = base.state_dict(), model.state_dict()
    for name in names:
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(after[name][:400], before[name])
        for token in outcome.results["tokens"]:
            # The base's own tokens of what the new token stands for.
            text = extended.convert_tokens_to_string([token])
            number = extended.get_vocab()[token]
            if "\ufffd" in text or tokenizer.tokenize(text)[0] == token:
                continue
            pieces = tokenizer.encode(text, add_special_tokens=False)
            expected = torch.stack([before[name][piece].float() for piece in pieces]).mean(dim=0)
            assert torch.equal(after[name][number], expected.to(torch.bfloat16)), token
        rest = before[name].float().mean(dim=0).to(torch.bfloat16)
        assert torch.equal(after[name][430:], rest.expand(18, -1))
    for name in before.keys() - {"model.embed_tokens.weight", "lm_head.weight"}:
        assert torch.equal(after[name], before[name])
    assert outcome.results["bytes_per_token"] > outcome.results["bytes_per_token_before"]


def test_each_tensor_keeps_its_type(tmp_path, model_folder, tokenizer):
    base = shutil.copytree(model_folder, tmp_path / "base")
    state = load_file(base / "model.safetensors")
    state = {n: t if "norm" in n else t.bfloat16() for n, t in state.items()}
    save_file(state, base / "model.safetensors", {"format": "pt"})
    (tmp_path / "new.txt").write_text("kwamba\n")
    extend.run(ExtendRecipe(ModelSource(str(base)), tokens=str(tmp_path / "new.txt")), tmp_path)
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        assert tensor.dtype == state[name].dtype, name
        assert torch.equal(tensor[:400], state[name])


def test_tokens_of_a_file(tmp_path, model_folder, tokenizer):
    # With the mark that Windows' editors begin a file with, which is no part of the first token.
    (tmp_path / "new.txt").write_text("kwamba\nhaki za binadamu\n", encoding="utf-8-sig")
    recipe = ExtendRecipe(ModelSource(str(model_folder)), tokens=str(tmp_path / "new.txt"))
    outcome = extend.run(recipe, tmp_path)
    assert outcome.results["tokens"] == ["kwamba", "haki za binadamu"]
    extended = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert extended.encode("kwamba", add_special_tokens=False) == [400]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    pieces = tokenizer.encode("haki za binadamu", add_special_tokens=False)
    for side in ("get_input_embeddings", "get_output_embeddings"):
        new, old = getattr(model, side)().weight, getattr(base, side)().weight
        assert torch.equal(new[:400], old)
        assert torch.allclose(new[401], old[pieces].mean(dim=0))
    assert "bytes_per_token" not in outcome.results


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("kwamba\n\nhaki\n", r"line 2 is empty"),
        ("kwamba\nhaki\nkwamba\n", r"line 3 repeats 'kwamba' of line 1"),
        ("kwamba\ne\n", r"line 2: 'e' is a token of the tokenizer already"),
        ("", r"is empty; give one"),
    ],
)
def test_tokens_that_cannot_be_added(tmp_path, model_folder, lines, complaint):
    (tmp_path / "new.txt").write_text(lines)
    recipe = ExtendRecipe(ModelSource(str(model_folder)), tokens=str(tmp_path / "new.txt"))
    with pytest.raises(UserError, match=complaint):
        extend.run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_learned(tokenizer):
    with pytest.raises(UserError, match="asks for 5 tokens and only 0 occur twice"):
        learn_tokens(tokenizer.backend_tokenizer, ["ab"], 5)
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UserError, match="byte pair encoding, got WordLevel"):
        learn_tokens(words, ["a a"], 1)


def test_a_tokenizer_json_with_merges_as_strings(tokenizer, swahili, tmp_path):
    """As older versions of tokenizers wrote them."""
    tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    state = json.loads(file.read_text())
    state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
    file.write_text(json.dumps(state))
    older = AutoTokenizer.from_pretrained(tmp_path)
    learned = learn_tokens(older.backend_tokenizer, swahili.train, 5)
    assert extend.with_learned_tokens(older, learned).get_vocab().keys() >= set(learned.tokens)
