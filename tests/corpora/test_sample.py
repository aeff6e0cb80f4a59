"""A fixed sample of documents by a hash of their keys."""

import json
import zlib

import numpy as np
import pytest

from freezetrain.data.texts import _scattered, read_languages
from freezetrain.recipe.sources import TextSource


def murmur(key):
    """MurmurHash3's finalizer, one number at a time."""
    key ^= key >> 16
    key = key * 0x85EBCA6B % 2**32
    key ^= key >> 13
    key = key * 0xC2B2AE35 % 2**32
    return key ^ (key >> 16)


def write(path, keys, order):
    rows = [json.dumps({"id": keys[n], "text": f"{path.stem} {keys[n]}"}) + "\n" for n in order]
    path.write_text("".join(rows))


@pytest.fixture
def parallel(tmp_path):
    """Languages with the same keys, in other orders; vi lacks the even ones below 100."""
    keys = np.arange(1000)
    write(tmp_path / "en.jsonl", keys.tolist(), keys)
    write(tmp_path / "zh.jsonl", keys.tolist(), np.random.default_rng(0).permutation(keys))
    write(tmp_path / "vi.jsonl", keys.tolist(), [n for n in keys if n % 2 or n >= 100])
    return TextSource(folder=str(tmp_path), key_field="id", test_one_in=2)


def sampled(source, language, count):
    texts = read_languages(source, [language])[language].test.sample(count)
    return [int(text.split()[1]) for text in texts]


def test_parallel_languages_give_the_same_documents_in_their_own_order(parallel):
    en, zh = sampled(parallel, "en", 50), sampled(parallel, "zh", 50)
    assert len(en) == 50
    assert en == sorted(en)  # the order of the file
    assert zh != en
    assert sorted(zh) == en
    # What a language lacks is replaced; all the others are kept.
    vi = sampled(parallel, "vi", 50)
    lacking = [n for n in en if n % 2 == 0 and n < 100]
    assert lacking
    assert set(en) - set(lacking) <= set(vi)
    assert len(vi) == 50


def test_a_larger_sample_holds_the_smaller_and_all_is_all(parallel):
    small, large = (set(sampled(parallel, "en", count)) for count in (20, 200))
    assert small < large
    test = read_languages(parallel, ["en"])["en"].test
    assert list(test.sample(10_000)) == list(test)


def test_the_sample_is_of_the_held_out_documents_and_the_same_each_time(parallel):
    language = read_languages(parallel, ["en"])["en"]
    chosen = list(language.test.sample(30))
    assert set(chosen) <= set(language.test)
    assert chosen == list(read_languages(parallel, ["en"])["en"].test.sample(30))
    keys = {n: zlib.crc32(str(n).encode()) for n in range(1000)}
    held_out = [n for n, key in keys.items() if key % 2 == 0]
    expected = sorted(held_out, key=lambda n: murmur(keys[n]))[:30]
    assert sampled(parallel, "en", 30) == sorted(expected)


def test_without_a_key_field_the_text_decides(parallel, tmp_path):
    source = TextSource(folder=str(tmp_path), test_one_in=1)
    en, zh = (set(sampled(source, name, 50)) for name in ("en", "zh"))
    assert len(en & zh) < 15  # 2.5 are expected


def test_the_hash_is_murmurs_finalizer_and_loses_nothing():
    keys = np.random.default_rng(1).integers(0, 2**32, 1000, dtype=np.uint32)
    assert _scattered(keys).tolist() == [murmur(int(key)) for key in keys]
    assert len(set(_scattered(np.arange(100_000, dtype=np.uint32)).tolist())) == 100_000
