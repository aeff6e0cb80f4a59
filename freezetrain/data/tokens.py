"""Texts → token ids on disk, once for all runs that read the same texts with the same tokenizer."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from freezetrain.data.packing import TokenStore, piece_folder
from freezetrain.data.texts import Language, Texts, read_languages
from freezetrain.errors import UserError
from freezetrain.files import remove_unfinished, require_space, whole
from freezetrain.ranks import end_with_parent
from freezetrain.recipe.sources import TextSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_VERSION = 1  # of what is kept on disk

_LARGEST_PIECE = 64 * 2**20  # bytes of text; what a kill loses of one worker's time

_SMALLEST_PIECE = 2**20

_SAMPLED = 64  # documents, to tell how much room the tokens will take


def default_cache() -> Path:
    """FREEZETRAIN_CACHE, else freezetrain in XDG_CACHE_HOME, else ~/.cache/freezetrain."""
    if told := os.environ.get("FREEZETRAIN_CACHE"):
        return Path(told)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freezetrain"


def default_workers() -> int:
    """Cores that this process may use, where the system tells; else all."""
    tells = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if tells else os.cpu_count() or 1


def tokenize(
    source: TextSource,
    language: str,
    tokenizer: "PreTrainedTokenizerBase",
    cache: Path,
    workers: int,
) -> TokenStore:
    """Tokens of the training documents of ``language``, from ``cache`` where they are there.

    They are found by content: of the documents read and their split, and of the tokenizer. Else
    they are made by ``workers`` processes in pieces; a preparation that was killed goes on after
    its last whole pieces. Of several processes, one prepares and the others wait.

    Raises UserError as :func:`read_languages` does, where there is no training document, where
    the tokenizer has no EOS, where the disk has too little room and where ``cache`` cannot be
    written to.
    """
    texts = read_languages(source, [language])[language]
    texts.to_train()  # refuses a language without a training document
    try:
        return _found_or_made(texts, source, tokenizer, cache, workers)
    except OSError as error:
        raise UserError(
            f"cannot keep the tokens of language {language!r} in {cache}: {error}; give cache, or "
            "FREEZETRAIN_CACHE, a folder that can be written to"
        ) from error


def _found_or_made(
    texts: Language,
    source: TextSource,
    tokenizer: "PreTrainedTokenizerBase",
    cache: Path,
    workers: int,
) -> TokenStore:
    key = json.dumps(
        [
            _VERSION,
            _content(texts.train.rows, cache),
            source.test_one_in,
            tokenizer_digest(tokenizer),
        ]
    )
    digest = hashlib.sha256(key.encode()).hexdigest()
    folder = cache / "tokens" / digest[:32]
    if not (folder / "facts.json").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not (folder / "facts.json").exists():
                _prepare(folder, texts, tokenizer, workers, digest)
    return TokenStore(folder)


def _content(rows: datasets.Dataset, cache: Path) -> str:
    """SHA-256 of texts and keys, whatever files they were read from; remembered by fingerprint."""
    known = cache / "contents" / rows._fingerprint
    if known.exists():
        return known.read_text()
    known.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(known.with_suffix(".lock")):
        if known.exists():
            return known.read_text()
        texts, others = hashlib.sha256(), hashlib.sha256()
        for batch in rows.data.table.select(["text", "key", "kind"]).to_batches():
            text, *more = batch.columns
            lengths = pc.fill_null(pc.binary_length(text), -1).cast(pa.int64())
            others.update(
                np.column_stack([lengths, *(column.cast(pa.int64()) for column in more)]).data
            )
            _, offsets, data = text.cast(pa.large_string()).buffers()
            bounds = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
            if data is not None:
                texts.update(memoryview(data)[bounds[0] : bounds[-1]])
        digest = texts.hexdigest() + others.hexdigest()
        with whole(known) as new:
            new.write_text(digest)
    return digest


def _prepare(
    folder: Path,
    language: Language,
    tokenizer: "PreTrainedTokenizerBase",
    workers: int,
    digest: str,
) -> None:
    texts = language.train
    next(encode(["a"], tokenizer))  # complains of a tokenizer that cannot do it
    numbers = pa.array(texts.numbers)
    lengths = pc.binary_length(texts.rows.data.table.column("text")).take(numbers).to_numpy()
    total = int(lengths.sum(dtype=np.int64))
    wide = max(tokenizer.get_vocab().values()) >= 2**16

    # By content alone, so that a preparation that goes on with other workers has the same pieces.
    size = min(max(total // 32, _SMALLEST_PIECE), _LARGEST_PIECE)
    of_document = (np.cumsum(lengths, dtype=np.int64) - lengths) // size
    bounds = [*np.unique(of_document, return_index=True)[1].tolist(), len(texts)]
    missing = [n for n in range(len(bounds) - 1) if not piece_folder(folder, n).exists()]
    expected = _tokens_expected(texts, total, tokenizer) * (4 if wide else 2)
    needed = expected * len(missing) // (len(bounds) - 1) + 16 * len(texts)
    require_space(folder, needed, f"the tokens of language {language.name!r}")

    folder.mkdir(exist_ok=True)
    remove_unfinished(folder / "*")
    if missing:
        dtype = np.uint32 if wide else np.uint16
        write = partial(_write_piece, texts, tokenizer, folder, bounds, dtype, os.getpid())
        with bars(shown=total >= _LARGEST_PIECE), _tokenizers_alone(workers > 1):
            datasets.Dataset.from_dict({"piece": missing}).map(
                write,
                input_columns="piece",
                num_proc=min(workers, len(missing)) if workers > 1 else None,
                new_fingerprint=digest[:16],
                desc=f"tokenize {language.name}",
            )
    _finish(folder, language, len(bounds) - 1, digest)


def _write_piece(
    texts: Texts,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    bounds: Sequence[int],
    dtype: type,
    parent: int,
    number: int,
) -> None:
    """Tokens and starts of documents ``bounds[number]`` to ``bounds[number + 1]``."""
    if os.getpid() != parent:
        end_with_parent(parent)
    facts = dict.fromkeys(("documents", "tokens", "bytes", "words"), 0)

    def counted() -> Iterator[str]:
        for text in Texts(texts.rows, texts.numbers[bounds[number] : bounds[number + 1]]):
            facts["documents"] += 1
            facts["bytes"] += len(text.encode())
            facts["words"] += len(text.split())
            yield text

    encoded: list[np.ndarray] = [np.array(ids, dtype=dtype) for ids in encode(counted(), tokenizer)]
    facts["tokens"] = sum(map(len, encoded))
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)[:-1]
    piece = piece_folder(folder, number)
    try:
        with whole(piece) as new:
            new.mkdir()
            np.save(new / "tokens.npy", np.concatenate(encoded))
            np.save(new / "starts.npy", starts)
            (new / "facts.json").write_text(json.dumps(facts))
    except OSError:
        if not piece.exists():  # else one whose parent was killed has written the same
            raise


def _finish(folder: Path, language: Language, pieces: int, digest: str) -> None:
    """Put together what the pieces count and where their documents start."""
    facts = {"documents": 0, "tokens": 0, "bytes": 0, "words": 0}
    starts = []
    for number in range(pieces):
        piece = piece_folder(folder, number)
        starts.append(np.load(piece / "starts.npy", allow_pickle=False) + facts["tokens"])
        for name, count in json.loads((piece / "facts.json").read_text(encoding="utf-8")).items():
            facts[name] += count
    facts |= {"held_out": len(language.test), "skipped": language.skipped}
    with whole(folder / "starts.npy") as new:
        np.save(new, np.concatenate(starts))
    kept = {"language": language.name, "digest": digest, "pieces": pieces, "facts": facts}
    with whole(folder / "facts.json") as new:  # last: it says that all is there
        new.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def _tokens_expected(texts: Texts, total: int, tokenizer: "PreTrainedTokenizerBase") -> int:
    """About how many tokens ``total`` bytes of text have, from documents all over them."""
    sample = [text[:2000] for text in texts[:: max(1, len(texts) // _SAMPLED)][:_SAMPLED]]
    tokens = sum(len(ids) for ids in encode(sample, tokenizer))
    return round(1.2 * total * tokens / sum(len(text.encode()) for text in sample))


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Leave it to `datasets` to show its progress bars, or have it show none."""
    before = datasets.is_progress_bar_enabled()
    if not shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if before:
            datasets.enable_progress_bars()


@contextmanager
def _tokenizers_alone(forked: bool) -> Iterator[None]:
    """Threads of the `tokenizers` library do not survive a fork; processes work in parallel."""
    before: Any = os.environ.get("TOKENIZERS_PARALLELISM")
    if forked:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if forked:
            os.environ.pop("TOKENIZERS_PARALLELISM")
            if before is not None:
                os.environ["TOKENIZERS_PARALLELISM"] = before


_ENCODED_AT_ONCE = 2**20  # characters of text


def encode(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of each document: `[BOS] tokens EOS`.

    BOS only where the tokenizer has one that is not its EOS. A text that spells a special token
    gets the tokens of the spelling. Raises UserError for a tokenizer without an EOS.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token to separate documents with; set its "
            "eos_token and save it again"
        )
    start = [bos] if bos is not None and bos != eos else []
    for batch in _batches(texts):
        # verbose=False: a document longer than the model's context is fine, it is cut later
        encoded = tokenizer(
            batch,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,
        )
        yield from ([*start, *ids, eos] for ids in cast(list[list[int]], encoded["input_ids"]))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _ENCODED_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of all that decides which ids a text gets, wherever the tokenizer came from."""
    digest = hashlib.sha256(json.dumps([tokenizer.bos_token_id, tokenizer.eos_token_id]).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        told = json.loads(backend.to_str())
        told |= {"truncation": None, "padding": None}  # left over from earlier calls
        digest.update(json.dumps(told).encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
