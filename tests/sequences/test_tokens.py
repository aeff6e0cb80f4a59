"""Tokens on disk against a plain loop over the tokenizer; the cache; kills."""

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

from freezetrain.data import tokens
from freezetrain.data.texts import read_languages
from freezetrain.data.tokens import tokenize
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


def forbid(monkeypatch):
    def refuse(*_):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(tokens, "_prepare", refuse)


def test_the_cache_goes_by_content(source, tokenizer, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    digest = tokenize(source, "en", tokenizer, cache, 1).digest
    moved = tmp_path / "elsewhere"
    shutil.copytree(source.folder, moved)
    os.utime(moved / "en.jsonl", (1, 1))
    path = moved / "en.jsonl"
    with monkeypatch.context() as patch:
        forbid(patch)
        assert tokenize(source, "en", tokenizer, cache, 1).digest == digest
        assert tokenize(TextSource(folder=str(moved)), "en", tokenizer, cache, 2).digest == digest
        path.rename(moved / "sv.jsonl")
        assert tokenize(TextSource(folder=str(moved)), "sv", tokenizer, cache, 1).digest == digest
        (moved / "sv.jsonl").rename(path)
    # Another word, another split, another limit, another tokenizer: another store.
    digests = {digest}
    path.write_text(path.read_text().replace("wörd3 ", "wörd4 ", 1))
    digests.add(tokenize(TextSource(folder=str(moved)), "en", tokenizer, cache, 1).digest)
    for change in ({"test_one_in": 5}, {"key_field": "id"}, {"documents": 200}):
        other = TextSource(folder=source.folder, **change)
        digests.add(tokenize(other, "en", tokenizer, cache, 1).digest)
    larger = deepcopy(tokenizer)
    larger.add_tokens(["wörd3"])
    digests.add(tokenize(source, "en", larger, cache, 1).digest)
    assert len(digests) == 6


def test_documents_moved_across_a_border_are_other_content(tokenizer, tmp_path):
    """The same characters end to end, cut elsewhere."""
    digests = set()
    for number, texts in enumerate((["ab ", "cd"], ["ab", " cd"])):
        folder = tmp_path / str(number)
        folder.mkdir()
        lines = [json.dumps({"text": text, "id": 1}) + "\n" for text in texts]
        (folder / "en.jsonl").write_text("".join(lines))
        told = TextSource(folder=str(folder), test_one_in=0, key_field="id")
        digests.add(tokenize(told, "en", tokenizer, tmp_path / "cache", 1).digest)
    assert len(digests) == 2


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
def slowly(texts, tokenizer):
    (cache / f"worker-{os.getpid()}").touch()
    if slow and len(list(cache.glob("tokens/*/0*/facts.json"))) >= 3:
        time.sleep(60)
    yield from encode(texts, tokenizer)
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
    expected = tokens._tokens_expected(train, count["bytes"], tokenizer)
    assert len(stream) <= expected < 1.6 * len(stream)


def test_nothing_to_train_on_is_refused(tokenizer, tmp_path):
    key = next(n for n in range(100) if zlib.crc32(str(n).encode()) % 4 == 0)
    (tmp_path / "en.jsonl").write_text(json.dumps({"id": key, "text": "alone"}) + "\n")
    with pytest.raises(UserError, match=r"'en' has no training document among 1"):
        tokenize(TextSource(folder=str(tmp_path), key_field="id"), "en", tokenizer, tmp_path, 1)


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


def test_a_cache_that_is_a_file_is_named(tokenizer, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot keep the tokens of language 'zh' in .*/cache: "):
        tokenize(TextSource(), "zh", tokenizer, tmp_path / "cache", workers=1)
