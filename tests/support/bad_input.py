"""Bad inputs as rows of a table: a command that is right, and the file or option that is not."""

import json
import os
import pickle
import shlex
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

_SHORT = "--sequences 2 --sequence_length 16 --workers 1"
_WATCHED = (
    "--evaluation.texts.folder @texts --evaluation.languages [es] --evaluation.documents 2 "
    "--evaluation.max_length 16"
)

COMMANDS = {
    "quickstart": "--model @base --texts @texts --score_languages [en] --target zh --steps 1 "
    "--sequence_length 16 --seeds 1",
    "paper": f"--model @base --texts @texts --languages [es] {_SHORT} --documents 2 "
    "--core_languages [es]",
    "score": f"--model @base --texts @texts --languages [zh] {_SHORT}",
    "select": "--scores @scores",
    "ablate": f"--model @base --regions [@region] --random_seeds [0] {_WATCHED}",
    "perturb": f"--model @base --dimensions [1] {_WATCHED}",
    "overlap": "--regions [@region,@other]",
    "convert": "--source @region --to paper",
    "extend": "--model @base --tokens @tokens",
    "rehearse": "--model @base --prompts @texts --languages [es] --sequences 4 "
    "--sequence_length 16 --prompt_tokens 2 --k 3",
    "train": "--model @base --texts @texts --languages [zh] --optimization.max_steps 2 "
    "--optimization.sequence_length 16 --optimization.micro_batch 2 --watch.off true --workers 1",
    "compare": "--train.model.path @base --train.texts.folder @texts --train.languages [zh] "
    "--train.optimization.max_steps 2 --train.optimization.sequence_length 16 "
    "--train.watch.texts.folder @texts --train.watch.languages [zh,es]",
    "forgetting": f"--base.path @base --models '[{{path: @adapted}}]' {_WATCHED}",
    "verify": "--base @base --adapted @adapted --region @region",
    "report": "--runs [@run]",
    "info": "--path @region",
}
"""Verb → options with which it does what it is for. ``@base`` is a file of :class:`Inputs`."""

FOLDERS = {"model": "base", "run": "run", "scores": "scores"}
"""Folder that a bad file lies in → the one of :class:`Inputs` that the others are linked from."""

LETTERS = {"@huge": "100000000000000000000", "@long": "n" * 300, "@nul": "a\0b", "@none": ""}
LETTERS |= {"@bytes": "\udcff", "@escape": "a\x1b[31mb", "@newline": "a\nb"}
LETTERS |= {"@deep": "[" * 3_000 + "]" * 3_000}
LETTERS |= {"@digits": "9" * 400}
LETTERS |= {"@up": "model.layers.0.mlp.up_proj.weight"}


@dataclass(frozen=True)
class Inputs:
    """Folder of inputs that are right, each under the name that commands call it by."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / name

    @property
    def places(self) -> dict[str, Path]:
        return {path.name: path for path in self.folder.iterdir()}


Make = Callable[[Path, Inputs], object]
"""Writes what is bad into a folder, which commands call ``@here``."""


@dataclass(frozen=True)
class Case:
    """A command that must be refused: that of ``verb``, with ``words`` after it.

    The sentence names what ``says`` says. ``bare``: without the options of ``COMMANDS``.
    """

    verb: str
    words: str | tuple[str, ...]
    says: str
    make: Make | None = None
    bare: bool = False
    env: Mapping[str, str] = field(default_factory=dict)

    def command(self, places: Mapping[str, Path]) -> list[str]:
        """Its words; ``--out @out``, a folder that does not exist, unless they name another."""
        words = [] if self.bare else shlex.split(COMMANDS[self.verb])
        own = shlex.split(self.words) if isinstance(self.words, str) else list(self.words)
        words += own if "--out" in own else ["--out", "@out", *own]
        return [self.verb, *(filled(word, places) for word in words)]


def filled(text: str, places: Mapping[str, Path]) -> str:
    """``text`` with paths and odd letters in the places of ``@here``, ``@long`` and so on."""
    for name, letters in LETTERS.items():
        text = text.replace(name, letters)
    for name, path in places.items():
        text = text.replace(f"@{name}", str(path))
    return text


def rows(table: str) -> Iterator[list[str]]:
    """The cells of each line, which ``" | "`` divides."""
    for line in table.strip().splitlines():
        if line.strip():
            yield [cell.strip() for cell in f"{line} ".split(" | ")]


def cases(*tables: tuple[str, Callable[..., Case]], exhaustive: bool = False) -> list[Any]:
    """Parameters of a test: what is made of the cells of each row, called by the row."""
    marks = [pytest.mark.exhaustive] if exhaustive else []
    return [
        pytest.param(make(*cells), id=" ".join(cells)[:90], marks=marks)
        for table, make in tables
        for cells in rows(table)
    ]


def option(verb: str, words: str, says: str) -> Case:
    """A row ``verb | options | what the sentence names``."""
    return Case(verb, words, says)


def bare(verb: str, words: str, says: str) -> Case:
    """As :func:`option`, without the options of ``COMMANDS``."""
    return Case(verb, words, says, bare=True)


def in_file(ways: Mapping[str, str]) -> Callable[..., Case]:
    """Rows ``way | file | content | what the sentence names``, else the file.

    A way is in ``ways``: ``[verb] options``, where the verb is not called as the way is.
    """

    def case(way: str, file: str, content: str, says: str = "") -> Case:
        options = ways[way]
        verb, _, rest = options.partition("]") if options.startswith("[") else (way, "", options)
        verb = verb.removeprefix("[")
        make = write(file, content)
        return Case(verb, rest, says or f"@here/{file}", make, bare=verb in ("select", "convert"))

    return case


def write(file: str, content: str) -> Make:
    """A file of one of ``CONTENTS``, or of the text after ``=``; no file for ``-``.

    ``+a/b = 5``: the JSON file of the folder's name with another value at a/b, where that is a file
    of safetensors its header; ``+a/b = -``: without it.
    """

    def make(here: Path, inputs: Inputs) -> None:
        path = here / file
        folder = FOLDERS.get(Path(file).parts[0]) if "/" in file else None
        if folder is not None:
            link_folder(inputs.folder / folder, here / Path(file).parts[0])
        if path.name == "model.safetensors.index.json":
            (path.parent / "model.safetensors").unlink()
        source = path if folder is not None else inputs.folder / file
        if content == "-":
            path.unlink(missing_ok=True)
        elif content.startswith("="):
            put(path, filled(content[1:].replace("\\n", "\n"), {}))
        elif content.startswith("+"):
            place, _, value = content[1:].partition(" = ")
            _change(path, source, filled(place, {}).split("/"), value)
        else:
            if content in SPECIAL:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                SPECIAL[content](path)
            else:
                made = CONTENTS[content]
                put(path, made(here) if callable(made) else made)

    return make


def _change(path: Path, source: Path, place: list[str], value: str) -> None:
    tensors = source.suffix == ".safetensors" or source.suffix == ""
    if tensors:
        with safe_open(source, framework="pt") as file:
            stored = json.loads(file.metadata()["freezetrain"])
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    else:
        stored = json.loads(source.read_text(encoding="utf-8"))
    *groups, last = place
    inner = stored
    for group in groups:
        inner = inner[int(group) if isinstance(inner, list) else group]
    key = int(last) if isinstance(inner, list) else last
    text = "7777777"
    if value == "-":
        del inner[key]
    else:
        inner[key] = int(text)
    changed = json.dumps(stored).replace(text, value)  # also what is no JSON, as NaN
    if tensors:
        path.unlink(missing_ok=True)
        save_file(held, path, {"freezetrain": changed})
    else:
        put(path, filled(changed, {}))


def put(path: Path, content: str | bytes) -> None:
    """Write a file; what was there is unlinked, as it may be a link to one that is right."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def link_folder(source: Path, target: Path) -> None:
    """A folder of hard links, which is quick."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)


class Payload:
    """Unpickled, it would make the file ``mark``."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def hostile_pickle(here: Path) -> bytes:
    return pickle.dumps(Payload(here / "RUN"))


def header(described: object, data: bytes = b"") -> bytes:
    """A file of safetensors."""
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + data


def anchors(last: str) -> str:
    """YAML of ten lines that stands for 9^9 items."""
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for name, after in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{after}: &{after} [{', '.join([f'*{name}'] * 9)}]")
    return "\n".join([*lines, f"{last}: *i"]) + "\n"


DEEP = '{"a":' * 3_000 + "1" + "}" * 3_000

_TENSOR = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}

CONTENTS: dict[str, str | bytes | Callable[[Path], bytes]] = {
    "nothing": b"",
    "words": "hello\n",
    "a list": "[1]",
    "null": "null",
    "a number": "5",
    "an empty mapping": "{}",
    "half a mapping": '{"model_type": "lla',
    "deep": DEEP,
    "a deep list": "[" * 50_000 + "]" * 50_000,
    "no text": b"\xff\xfe\x00\x80",
    "zeros": bytes(200),
    "HTML": "<!DOCTYPE html><html><body>401 Unauthorized</body></html>",
    "a pointer of LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 66\n",
    "a pickle": hostile_pickle,
    "an empty zip": b"PK\x05\x06" + bytes(18),
    "a huge header": struct.pack("<Q", 2**40) + b"{}",
    "a header of 2^63": struct.pack("<Q", 2**63) + b"{}",
    "a header of words": header(b"{no"),
    "a header of a list": header(b"[1, 2]"),
    "a deep header": header(DEEP.encode()),
    "metadata of a number": header({"__metadata__": 5, "a": _TENSOR}, bytes(16)),
    "no tensors": header({}),
    "an unknown type": header({"a": {**_TENSOR, "dtype": "F99"}}, bytes(16)),
    "a tensor beyond the end": header({"a": {**_TENSOR, "data_offsets": [0, 10**9]}}, bytes(16)),
    "tensors over one another": header({"a": _TENSOR, "b": _TENSOR}, bytes(16)),
    "a negative shape": header({"a": {**_TENSOR, "shape": [-2, 2]}}, bytes(16)),
    "a huge shape": header({"a": {**_TENSOR, "shape": [2**62, 2**62]}}, bytes(16)),
    "another tensor": header({"a": _TENSOR}, bytes(16)),
    "anchors that multiply": anchors("languages"),
    "an anchor in itself": "languages: &a [*a]\n",
    "a deep sequence": "languages: " + "[" * 3_000 + "]" * 3_000,
    "a tag of Python": '!!python/object/apply:os.system ["touch RUN"]\n',
    "a key twice": "seed: 1\nseed: 2\n",
}

SPECIAL: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a dangling link": lambda path: path.symlink_to("/nowhere/at/all"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a folder": lambda path: path.mkdir(),
}
