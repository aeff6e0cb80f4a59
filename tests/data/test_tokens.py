"""Tokens on disk against a plain loop over the tokenizer; stores; the cache; kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from freezetrain.data import tokens
from freezetrain.data.texts import read_languages
from freezetrain.data.tokens import TokenStore, encode, tokenize, tokenizer_digest
from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource


@pytest.fixture
def source(tmp_path):
    """300 documents of one language, some blank, some that spell EOS."""
    folder = tmp_path / "texts"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with (folder / "en.jsonl").open("w", encoding="utf-8") as file:
        for number in range(300):
            words = ["</s>" if w == 7 else f"wörd{w}" for w in rng.integers(0, 90, number % 40)]
            file.write(json.dumps({"id": number, "text": " ".join(words)}, ensure_ascii=False))
            file.write("\n")
    return TextSource(folder=str(folder))


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(tokens, "_SMALLEST_PIECE", 2000)


def by_hand(source, tokenizer):
    """Read, split and tokenize with a plain loop."""
    stream, starts, count = [], [], {"bytes": 0, "words": 0, "held_out": 0}
    with open(f"{source.folder}/en.jsonl") as file:
        for line in file:
            text = json.loads(line)["text"]
            if not text:
                continue
            if zlib.crc32(text.encode()) % 4 == 0:
                count["held_out"] += 1
                continue
            starts.append(len(stream))
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            stream += [0, *ids, 1]
            count["bytes"] += len(text.encode())
            count["words"] += len(text.split())
    return stream, starts, count


@pytest.mark.parametrize("workers", [1, 2])
def test_store_equals_a_plain_loop(source, tokenizer, tmp_path, workers, small_pieces):
    store = tokenize(source, "en", tokenizer, tmp_path / "cache", workers)
    stream, starts, count = by_hand(source, tokenizer)
    assert len(store._pieces) > 4
    assert store.read(0, len(store)).tolist() == stream
    assert store.starts(0, len(store)).tolist() == starts
    expected = {"documents": len(starts), "tokens": len(stream), "skipped": 0, **count}
    assert store.facts == expected
    assert store._pieces[0].dtype == np.uint16


def test_wide_vocabularies_take_four_bytes(source, tokenizer, tmp_path, monkeypatch):
    vocabulary = {**tokenizer.get_vocab(), "far": 2**16}
    monkeypatch.setattr(type(tokenizer), "get_vocab", lambda self: vocabulary)
    store = tokenize(source, "en", tokenizer, tmp_path / "cache", 1)
    assert store._pieces[0].dtype == np.uint32


def test_the_cache_goes_by_content(source, tokenizer, tmp_path, monkeypatch):
    cache = tmp_path / "cache"

    def digest(folder, language="en", tokenizer=tokenizer, **changes):
        return tokenize(TextSource(str(folder), **changes), language, tokenizer, cache, 1).digest

    first = digest(source.folder)
    moved = tmp_path / "elsewhere"
    shutil.copytree(source.folder, moved)
    path = moved / "en.jsonl"
    os.utime(path, (1, 1))
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_prepare", None)  # nothing is tokenized again
        assert digest(source.folder) == digest(moved) == first
        path.rename(moved / "sv.jsonl")
        assert digest(moved, "sv") == first
        (moved / "sv.jsonl").rename(path)
    # Another word, another split, another limit, another tokenizer: another store.
    path.write_text(path.read_text().replace("wörd3 ", "wörd4 ", 1))
    larger = deepcopy(tokenizer)
    larger.add_tokens(["wörd3"])
    digests = {first, digest(moved), digest(source.folder, tokenizer=larger)}
    for change in ({"test_one_in": 5}, {"key_field": "id"}, {"documents": 200}):
        digests.add(digest(source.folder, **change))
    # The same characters end to end, with another border between documents.
    for number, texts in enumerate((["ab ", "cd"], ["ab", " cd"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        lines = [json.dumps({"text": text, "id": 1}) + "\n" for text in texts]
        (folder / "en.jsonl").write_text("".join(lines))
        digests.add(digest(folder, test_one_in=0, key_field="id"))
    assert len(digests) == 8


# Tokenizes 2 pieces at a time, and holds each for a while once two are there.
SCRIPT = """
import os, sys, time
from pathlib import Path
from transformers import AutoTokenizer
from freezetrain.recipe.sources import TextSource
from freezetrain.data import tokens

tokens._SMALLEST_PIECE = 2000
cache, folder, tokenizer, slow = Path(sys.argv[1]), sys.argv[2], sys.argv[3], len(sys.argv) > 4
encode = tokens.encode
def slowly(texts, tokenizer, *more):
    (cache / f"worker-{os.getpid()}").touch()
    if slow and len(list(cache.glob("tokens/*/0*/facts.json"))) >= 3:
        time.sleep(60)
    yield from encode(texts, tokenizer, *more)
tokens.encode = slowly
store = tokens.tokenize(TextSource(folder=folder), "en", AutoTokenizer.from_pretrained(tokenizer),
                        cache, 2)
print(store.digest)
"""


def start(cache, source, model_folder, *more):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, cache, source.folder, model_folder, *more],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "HF_DATASETS_CACHE": str(cache / "datasets")},
    )


def alive(process):
    """Whether a process of /proc runs; one that nobody has asked after yet does not."""
    try:
        return "State:\tZ" not in (process / "status").read_text()
    except FileNotFoundError:
        return False


def test_killed_preparation_goes_on_after_its_whole_pieces(
    source, tokenizer, model_folder, tmp_path, small_pieces
):
    cache = tmp_path / "cache"
    killed = start(cache, source, model_folder, "slow")
    deadline = time.monotonic() + 60
    while len(list(cache.glob("tokens/*/0*/facts.json"))) < 3:
        assert time.monotonic() < deadline
        assert killed.poll() is None
        time.sleep(0.05)
    workers = [Path("/proc") / path.name.split("-")[1] for path in cache.glob("worker-*")]
    workers.remove(Path("/proc") / str(killed.pid))  # it has tried the tokenizer
    assert len(workers) == 2
    killed.send_signal(signal.SIGKILL)  # the parent alone: its workers must not stay behind
    killed.wait()
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    whole = {path: path.stat().st_mtime_ns for path in cache.glob("tokens/*/0*/tokens.npy")}
    assert not list(cache.glob("tokens/*/facts.json"))

    with suppress(ProcessLookupError):  # the process that `datasets` shares a queue by
        os.killpg(killed.pid, signal.SIGKILL)

    # Two at once: one prepares, the other waits for it.
    other = start(cache, source, model_folder)
    store = tokenize(source, "en", tokenizer, cache, 1)
    assert other.communicate(timeout=100)[0] == store.digest + "\n"
    assert len(whole) >= 3
    assert all(path.stat().st_mtime_ns == written for path, written in whole.items())
    assert not list(cache.glob("tokens/*/*.unfinished"))
    assert len(store._pieces) > len(whole)
    assert store.read(0, len(store)).tolist() == by_hand(source, tokenizer)[0]


def test_too_little_disk_is_told_before_anything_is_written(
    source, tokenizer, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("freezetrain.files.shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"the tokens of language 'en' may take .* 100 bytes"):
        tokenize(source, "en", tokenizer, tmp_path / "cache", 1)
    assert not list((tmp_path / "cache").glob("tokens/*/*"))


def test_the_room_that_is_asked_for_is_about_what_is_taken(source, tokenizer, tmp_path):
    train = read_languages(source, ["en"])["en"].train
    stream, _, count = by_hand(source, tokenizer)
    expected = tokens._tokens_expected(train, count["bytes"], source, tokenizer)
    assert len(stream) <= expected < 1.6 * len(stream)


@pytest.mark.parametrize(
    ("variable", "folder"),
    [
        ("FREEZETRAIN_CACHE", "tokens"),
        ("XDG_CACHE_HOME", "freezetrain/tokens"),
        ("HOME", ".cache/freezetrain/tokens"),
    ],
)
def test_where_the_cache_is(tokenizer, monkeypatch, tmp_path, variable, folder):
    monkeypatch.delenv("FREEZETRAIN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    tokenize(TextSource(), "zh", tokenizer, workers=1)
    assert (tmp_path / folder).is_dir()


def test_nothing_to_train_on_is_refused(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"'zh' has no training document among 31"):
        tokenize(TextSource(test_one_in=1), "zh", tokenizer, tmp_path, 1)


def test_a_cache_that_is_a_file_is_named(tokenizer, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot keep the tokens of language 'zh' in .*/cache: "):
        tokenize(TextSource(), "zh", tokenizer, tmp_path / "cache", workers=1)


def test_one_separator_where_bos_is_eos(tokenizer):
    gpt2 = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>", eos_token="</s>"
    )
    ids = tokenizer("a b", add_special_tokens=False)["input_ids"]
    assert list(encode(["a b", "a b"], gpt2)) == [[*ids, 1]] * 2
    assert list(encode(["a b"], tokenizer)) == [[0, *ids, 1]]
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(UserError, match="no end-of-sequence token"):
        list(encode(["a b"], bare))


def test_a_text_that_spells_a_special_token_does_not_become_one(tokenizer):
    text = "end with </s> and <s>"
    assert 1 in tokenizer(text, add_special_tokens=False)["input_ids"]  # the danger is there
    (ids,) = encode([text], tokenizer)
    assert [ids[0], ids[-1]] == [0, 1]
    assert not {0, 1} & set(ids[1:-1])
    assert tokenizer.decode(ids[1:-1]) == text
    # Nor does it change what the tokenizer does for others.
    assert 1 in tokenizer(text, add_special_tokens=False)["input_ids"]


def test_digest_is_of_what_decides_the_ids(tokenizer, tmp_path):
    digest = tokenizer_digest(tokenizer)
    tokenizer.save_pretrained(tmp_path / "moved")
    moved = PreTrainedTokenizerFast.from_pretrained(tmp_path / "moved")
    moved(["a b c d e"], truncation=True, max_length=3)
    assert 'truncation":{' in moved.backend_tokenizer.to_str().replace(" ", "")
    assert tokenizer_digest(moved) == digest
    list(encode(["a"], moved))
    assert tokenizer_digest(moved) == digest
    other = deepcopy(tokenizer)
    other.add_tokens(["freiheit"])
    assert tokenizer_digest(other) != digest
    backwards = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, bos_token="</s>", eos_token="<s>"
    )
    assert tokenizer_digest(backwards) != digest


DOCUMENTS = [[7, 8, 1], [9, 1], [5, 5, 5, 5, 1], [2, 1], [3, 4, 1]]


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_every_range_of_a_store_reads_as_a_list_does(make_store, pieces):
    store = make_store(DOCUMENTS, pieces)
    stream = [token for document in DOCUMENTS for token in document]
    starts = [0, 3, 5, 10, 12]
    assert len(store) == len(stream)
    for first in range(len(stream)):
        for last in range(first, len(stream) + 1):
            ids = store.read(first, last)
            assert ids.dtype == np.int64
            assert ids.tolist() == stream[first:last]
            assert store.starts(first, last).tolist() == [s for s in starts if first <= s < last]
    places = np.arange(len(stream) + 2)
    before = [sum(start < place for start in starts) for place in places]
    assert store.starts_before(places).tolist() == before


def test_damaged_stores_are_refused(make_store, tmp_path):
    folder = tmp_path / "copied"
    store = make_store(DOCUMENTS, 2)
    shutil.copytree(Path(store._pieces[0].filename).parents[1], folder)
    path = folder / "00001" / "tokens.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(UserError, match=r"damaged .*delete the folder"):
        TokenStore(folder, "xx")
    np.save(path, np.zeros(3, dtype=np.uint16))
    with pytest.raises(UserError, match=r"tokens in .* are \d+ and not the 15"):
        TokenStore(folder, "xx")
    path.write_bytes(content)
    TokenStore(folder, "xx")
    (folder / "facts.json").write_text("{}")
    with pytest.raises(UserError, match="damaged"):
        TokenStore(folder, "xx")
