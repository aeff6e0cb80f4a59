"""Texts and token files that cannot be read: each named, with the place in it."""

import bz2
import gzip
import io
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bad_input import Case, cases, in_file, option, put

TEXTS = in_file(
    {
        "score": "--texts @here/texts",
        "train": "--texts @here/texts",
        "skip": "[train] --texts @here/texts --texts.bad_lines skip",
        "key": "[train] --texts @here/texts --texts.key_field id",
        "paper": "--texts @here/texts",
        "quickstart": "--texts @here/texts",
        "extend": "--tokens null --learn 3 --language zh --texts @here/texts",
        "vocabulary": "[select] --kind vocabulary --model @base --language zh --texts @here/texts",
        "watch": "[train] --watch.off false --watch.texts.folder @here/texts "
        "--watch.languages [zh]",
        "replay": "[train] --replay.texts.folder @here/texts --replay.languages [zh] "
        "--languages [en]",
        "perturb": "--evaluation.texts.folder @here/texts --evaluation.languages [zh]",
        "ablate": "--evaluation.texts.folder @here/texts --evaluation.languages [zh]",
        "forgetting": "--evaluation.texts.folder @here/texts --evaluation.languages [zh]",
        "compare": "--train.watch.texts.folder @here/texts --train.texts.folder @here/texts",
        "tokens": "[extend] --tokens @here/tokens",
    }
)

FOLDERS = """
score | elsewhere | words | @here/texts
paper | elsewhere | words | @here/texts
quickstart | elsewhere | words | @here/texts
extend | elsewhere | words | @here/texts
vocabulary | elsewhere | words | @here/texts
ablate | elsewhere | words | @here/texts
compare | elsewhere | words | @here/texts
train | texts | a folder
train | texts/zh.csv | words | @here/texts
score | texts/zh | words | @here/texts
score | texts/de.jsonl | words | 'zh'
train | texts/zho.jsonl | words | did you mean 'zho'
score | texts/zh.jsonl | a pipe | zh
train | texts/zh.jsonl | a folder | @here/texts
"""

FILES = """
score | texts/zh.jsonl | nothing
train | texts/zh.jsonl | words | zh.jsonl line 1
extend | texts/zh.jsonl | a list | zh.jsonl line 1
vocabulary | texts/zh.jsonl | null | zh.jsonl line 1
ablate | texts/zh.jsonl | a pointer of LFS | zh.jsonl line 1
quickstart | texts/zh.jsonl | zeros | zh
train | texts/zh.jsonl | ={"text": "  "} | zh
skip | texts/zh.jsonl | words | zh
key | texts/zh.jsonl | ={"text": "a"} | 'id'
score | texts/zh.json | a deep list
train | texts/zh.json | =["a", "b"] | zh.json
extend | texts/zh.json | =[{"text": "a"}] x | zh.json
train | texts/zh.json | =[] | zh.json
score | texts/zh.txt | no text
train | texts/zh.devtest | no text
tokens | elsewhere | words | @here/tokens
tokens | tokens | nothing
tokens | tokens | =\\n \\n
tokens | tokens | no text
tokens | tokens | a folder
tokens | tokens | a pipe
tokens | tokens | a device
tokens | tokens | =xyzzy\\nxyzzy | xyzzy
tokens | tokens | =</s> | </s>
tokens | tokens | zeros
"""

OPTIONS = """
score | --texts.hub x/y | folder
score | --texts.streaming true | streaming without documents
train | --texts.streaming true --optimization.max_steps null | max_tokens
train | --texts.streaming true --texts.documents 5 | documents must be left out
score | --texts.txt_documents pages | txt_documents
score | --texts.text_field body | 'body'
score | --texts.names '{zh: xx}' | 'xx'
score | --texts.names '{zh: ../texts/zh}' | ../texts/zh
score | --texts null --texts.hub nobody-here/nothing | nobody-here/nothing
score | --texts null --texts.hub @here/no | @here/no
train | --texts null --texts.streaming true | hub must be given, or folder
train | --texts null --texts.hub x/y --texts.streaming true --temperature 2 | temperature
"""

MORE = """
replay | texts/zh.jsonl | no text | zh.jsonl
forgetting | texts/zh.jsonl | a number | zh.jsonl line 1
watch | texts/zh.jsonl | nothing
train | texts/zh.jsonl | ={"text": NaN} | zh.jsonl line 1
perturb | elsewhere | words | @here/texts
forgetting | elsewhere | words | @here/texts
watch | elsewhere | words | @here/texts
train | texts/zh.txt | =\\n\\n | zh
train | texts/zh.jsonl.gz | words
train | texts/zh.jsonl.bz2 | words
train | texts/zh.jsonl | ={"text": "\\ud800"} | zh.jsonl line 1
score | texts/zh.parquet | nothing
train | texts/zh.jsonl | ={"texts": "a"} | did you mean 'texts'
train | texts/zh.jsonl | ={"text": null} | zh.jsonl line 1
replay | elsewhere | words | @here/texts
perturb | texts/zh.jsonl | HTML | zh.jsonl line 1
train | texts/zh.txt | nothing
train | texts/zh.jsonl | =  | zh.jsonl
train | texts/zh.jsonl | a device | zh
train | texts/zh.jsonl | a dangling link | zh.jsonl
train | texts/zh.jsonl | ={"text": 5} | zh.jsonl line 1
train | elsewhere | words | @here/texts
score | texts/zh.jsonl | ={"text": "a"}\\n{"text": "b" | zh.jsonl line 2
key | texts/zh.jsonl | ={"text": "a", "id": null} | 'id'
train | texts/zh.parquet | words
train | texts/zh.jsonl.gz | nothing
train | texts/zh.jsonl | a link to itself | zh
train | texts/zh.json | half a mapping
score | texts/zh.jsonl.zst | words
score | texts/zh.jsonl.xz | words
score | texts/zh.jsonl | deep | zh.jsonl line 1
score | texts | words
"""

MORE_OPTIONS = """
score | --texts.test_one_in 1 | 'zh'
score | --texts.key_field id | 'id'
"""

LINE = json.dumps({"text": "Alle Menschen sind frei und gleich an Würde geboren."}).encode()


def parquet(**columns: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def zst(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


CUT_OFF = {
    "gz": gzip.compress(LINE * 50)[:-10],
    "xz": lzma.compress(LINE * 50)[:-10],
    "bz2": bz2.compress(LINE * 50)[:-10],
    "zst": zst(LINE * 50)[:-10],
}

PARQUET = {
    "cut off": parquet(text=["a"])[:-20],
    "no rows": parquet(text=pa.array([], pa.string())),
    "another column": parquet(body=["a"]),
    "numbers": parquet(text=[1, 2]),
    "null": parquet(text=pa.array([None], pa.string())),
    "lists": parquet(text=[[1]]),
    "bytes": parquet(text=[b"\xff"]),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "case",
    cases((FOLDERS, TEXTS), (FILES, TEXTS), (OPTIONS, option))
    + cases((MORE, TEXTS), (MORE_OPTIONS, option), exhaustive=True),
)
def test_texts_that_cannot_be_read_are_refused(refuse, case):
    refuse(case)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("ending", CUT_OFF)
def test_a_compressed_file_that_was_cut_off_is_refused(refuse, ending):
    name = f"zh.jsonl.{ending}"

    def make(here: Path, inputs) -> None:
        put(here / "texts" / name, CUT_OFF[ending])

    refuse(Case("score", "--texts @here/texts", f"@here/texts/{name}", make))


@pytest.mark.timeout(30)
@pytest.mark.parametrize("content", PARQUET)
def test_a_table_that_holds_no_texts_is_refused(refuse, content):
    def make(here: Path, inputs) -> None:
        put(here / "texts/zh.parquet", PARQUET[content])

    refuse(Case("score", "--texts @here/texts", "zh.parquet", make))
