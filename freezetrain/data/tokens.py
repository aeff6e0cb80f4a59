"""Token ids of texts, kept on disk for all runs with the same texts and the same tokenizer."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock
from transformers import PreTrainedTokenizerBase

from freezetrain.data.chat import chat_template, conversation_ids, without_cuts, written
from freezetrain.data.texts import Language, Texts, progress_bars, read_languages
from freezetrain.errors import UserError
from freezetrain.files import remove_unfinished, require_space, whole
from freezetrain.ranks import end_with_parent
from freezetrain.recipe.sources import TextSource
from freezetrain.recipe.text_types import expanded

_VERSION = 1  # of what is kept on disk

_LARGEST_PIECE = 64 * 2**20  # bytes of text; what a kill loses of one worker's time

_SMALLEST_PIECE = 2**20

_SAMPLED = 64  # documents, to tell how much room the tokens will take

_ENCODED_AT_ONCE = 2**20  # characters of text


class TokenStore:
    """The training documents of one language, end to end, as one stream of token ids on disk.

    ``facts`` counts documents, tokens (BOS and EOS included), bytes of UTF-8, words (between white
    space), held_out documents and skipped lines. ``digest`` [hex] tells its content: texts, split
    and tokenizer. ``language`` is what messages call it: two languages of the same texts share a
    folder. Raises UserError where files of it are missing or damaged.
    """

    def __init__(self, folder: Path, language: str) -> None:
        self.language = language
        try:
            kept = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
            self.digest: str = kept["digest"]
            self.facts: dict[str, int] = kept["facts"]
            self._starts = np.load(folder / "starts.npy", mmap_mode="r")
            self._pieces = [
                np.load(_piece(folder, number) / "tokens.npy", mmap_mode="r")
                for number in range(kept["pieces"])
            ]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(
                f"the tokens in {folder} are damaged ({error}); delete the folder, they are then "
                "made anew"
            ) from error
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)
        if self._ends[-1] != len(self) or len(self._starts) != self.facts["documents"]:
            raise UserError(
                f"the tokens in {folder} are {self._ends[-1]} and not the {len(self)} that were "
                "written; delete the folder, they are then made anew"
            )

    def __len__(self) -> int:
        return self.facts["tokens"]

    def read(self, first: int, last: int) -> np.ndarray:
        """Token ids ``first`` to ``last``, the last excluded, int64."""
        tokens = np.empty(last - first, dtype=np.int64)
        number = int(np.searchsorted(self._ends, first, side="right"))
        at = first
        while at < last:
            end = int(self._ends[number])
            offset = end - len(self._pieces[number])
            until = min(last, end)
            tokens[at - first : until - first] = self._pieces[number][at - offset : until - offset]
            at, number = until, number + 1
        return tokens

    def starts(self, first: int, last: int) -> np.ndarray:
        """Places in ``first`` to ``last``, the last excluded, at which a document starts, int64."""
        low, high = np.searchsorted(self._starts, [first, last])
        return np.asarray(self._starts[low:high])

    def starts_before(self, places: np.ndarray) -> np.ndarray:
        """How many documents start before each of ``places``."""
        return np.searchsorted(self._starts, places)


def tokenize(
    source: TextSource,
    language: str,
    tokenizer: PreTrainedTokenizerBase,
    cache: str | Path | None = None,
    workers: int | None = None,
) -> TokenStore:
    """Tokens of the training documents of ``language``, from ``cache`` where they are there.

    They are found by content: of the documents read and their split, and of the tokenizer. Else
    they are made by ``workers`` processes (None: as many as this one may use cores) in pieces; a
    preparation that was killed goes on after its last whole pieces. Of several processes, one
    prepares and the others wait. ``cache`` None: FREEZETRAIN_CACHE, else freezetrain in
    XDG_CACHE_HOME, else ~/.cache/freezetrain.

    Raises UserError as :func:`read_languages` does, where there is no training document or none
    with a token, where the tokenizer has no EOS, where the disk has too little room and where
    ``cache`` cannot be written to; for conversations where the tokenizer has no chat template, or
    one that refuses one of them.
    """
    chats = source.messages_field is not None
    template = chat_template(tokenizer) if chats else None
    texts = read_languages(source, [language], conversations=True)[language]
    texts.to_train()  # refuses a language without a training document
    cache = Path(cache) if cache else _default_cache()
    try:
        content = _content(texts.train.rows, cache)
        key = [_VERSION, content, source.test_one_in, tokenizer_digest(tokenizer)]
        key += [] if template is None else [template]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
        folder = cache / "tokens" / digest[:32]
        if not (folder / "facts.json").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not (folder / "facts.json").exists():
                    _prepare(folder, texts, source, tokenizer, workers or _usable_cores(), digest)
        store = TokenStore(folder, language)
    except OSError as error:
        raise UserError(
            f"cannot keep the tokens of language {language!r} in {cache}: {error}; give cache, or "
            "FREEZETRAIN_CACHE, a folder that can be written to"
        ) from error
    alone = len(document_start(tokenizer)) + 1
    if not chats and len(store) == store.facts["documents"] * alone:
        raise UserError(
            f"the tokenizer makes no token of any training document of language {language!r}, so "
            "that there is nothing to learn; give other texts, or the tokenizer that the model was "
            "trained with"
        )
    return store


def _default_cache() -> Path:
    if folder := os.environ.get("FREEZETRAIN_CACHE"):
        return Path(expanded(folder))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "freezetrain"


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _piece(folder: Path, number: int) -> Path:
    """Where the tokens and document starts of one piece of a store's texts are."""
    return folder / f"{number:05d}"


def _content(rows: datasets.Dataset, cache: Path) -> str:
    """SHA-256 of texts and keys, whatever files they were read from; remembered by fingerprint."""
    known = cache / "contents" / rows._fingerprint
    if known.exists():
        return known.read_text()
    known.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(known.with_suffix(".lock")):
        if known.exists():
            return known.read_text()
        texts, facts = hashlib.sha256(), hashlib.sha256()
        for batch in rows.data.table.select(["text", "key", "kind"]).to_batches():
            text, key, kind = batch.columns
            lengths = pc.fill_null(pc.binary_length(text), -1).cast(pa.int64())
            columns = [lengths, key.cast(pa.int64()), kind.cast(pa.int64())]
            facts.update(np.column_stack(columns).data)
            _, offsets, data = text.cast(pa.large_string()).buffers()
            bounds = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
            if data is not None:
                texts.update(memoryview(data)[bounds[0] : bounds[-1]])
        digest = texts.hexdigest() + facts.hexdigest()
        with whole(known) as new:
            new.write_text(digest)
    return digest


def _prepare(
    folder: Path,
    language: Language,
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    workers: int,
    digest: str,
) -> None:
    texts = language.train
    next(encode(["a"], tokenizer))  # complains of a tokenizer that cannot do it
    numbers = pa.array(texts.numbers)
    lengths = pc.binary_length(texts.rows.data.table.column("text")).take(numbers).to_numpy()
    total = int(lengths.sum(dtype=np.int64))
    dtype = np.dtype(np.uint32 if max(tokenizer.get_vocab().values()) >= 2**16 else np.uint16)

    # By content alone, so that a preparation that goes on with other workers has the same pieces.
    size = min(max(total // 32, _SMALLEST_PIECE), _LARGEST_PIECE)
    piece_of_document = (np.cumsum(lengths, dtype=np.int64) - lengths) // size
    bounds = [*np.unique(piece_of_document, return_index=True)[1].tolist(), len(texts)]
    missing = [n for n in range(len(bounds) - 1) if not _piece(folder, n).exists()]
    expected = _tokens_expected(texts, total, source, tokenizer) * dtype.itemsize
    needed = expected * len(missing) // (len(bounds) - 1) + 16 * len(texts)
    require_space(folder, needed, f"the tokens of language {language.name!r}")

    folder.mkdir(exist_ok=True)
    remove_unfinished(folder / "*")
    if missing:
        write = partial(_write_piece, texts, source, tokenizer, folder, bounds, dtype, os.getpid())
        with progress_bars(shown=total >= _LARGEST_PIECE), _tokenizers_alone(workers > 1):
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
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    bounds: Sequence[int],
    dtype: np.dtype,
    parent: int,
    number: int,
) -> None:
    """Tokens and starts of documents ``bounds[number]`` to ``bounds[number + 1]``."""
    if os.getpid() != parent:
        end_with_parent(parent)
    facts = dict.fromkeys(("documents", "tokens", "bytes", "words"), 0)

    def counted() -> Iterator[str]:
        part = texts.part(bounds[number], bounds[number + 1])
        for text in part.written(written(source, tokenizer)):
            plain = without_cuts(text) if chats else text
            facts["documents"] += 1
            facts["bytes"] += len(plain.encode())
            facts["words"] += len(plain.split())
            yield text

    chats = source.messages_field is not None
    ids_of_each = encode(counted(), tokenizer, chats)
    encoded: list[np.ndarray] = [np.array(ids, dtype=dtype) for ids in ids_of_each]
    facts["tokens"] = sum(map(len, encoded))
    starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)[:-1]
    piece = _piece(folder, number)
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
    """Write what the pieces count together and where all documents start."""
    facts = {"documents": 0, "tokens": 0, "bytes": 0, "words": 0}
    starts = []
    for number in range(pieces):
        piece = _piece(folder, number)
        starts.append(np.load(piece / "starts.npy") + facts["tokens"])
        for name, count in json.loads((piece / "facts.json").read_text(encoding="utf-8")).items():
            facts[name] += count
    facts |= {"held_out": len(language.test), "skipped": language.skipped}
    with whole(folder / "starts.npy") as new:
        np.save(new, np.concatenate(starts))
    kept = {"language": language.name, "digest": digest, "pieces": pieces, "facts": facts}
    with whole(folder / "facts.json") as new:  # last: it says that all is there
        new.write_text(json.dumps(kept, indent=1), encoding="utf-8")


def _tokens_expected(
    texts: Texts, total: int, source: TextSource, tokenizer: PreTrainedTokenizerBase
) -> int:
    """About how many tokens ``total`` bytes of text have, from documents all over them."""
    step = max(1, len(texts) // _SAMPLED)
    sample = texts.part(0, step * _SAMPLED, step)
    chats = source.messages_field is not None
    whole = sample.written(written(source, tokenizer))
    tokens = sum(map(len, encode(whole if chats else _beginnings(sample), tokenizer, chats)))
    size = sum(len(text.encode()) for text in (sample if chats else _beginnings(sample)))
    return round(1.2 * total * tokens / size)


def _beginnings(texts: Iterable[str]) -> Iterator[str]:
    return (text[:2000] for text in texts)


@contextmanager
def _tokenizers_alone(forked: bool) -> Iterator[None]:
    """Threads of the `tokenizers` library do not survive a fork; processes work in parallel."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    if forked:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before
        elif forked:
            del os.environ["TOKENIZERS_PARALLELISM"]


def encode(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, conversations: bool = False
) -> Iterator[list[int]]:
    """Token ids of each document: `[BOS] tokens EOS`.

    BOS only where the tokenizer has one that is not its EOS. A text that spells a special token
    gets the tokens of the spelling. Of ``conversations`` that :func:`written` wrote, a BOS or an
    EOS that the template wrote is the document's. Raises UserError for a tokenizer without an EOS.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise UserError(
            "the tokenizer has no end-of-sequence token to separate documents with; set its "
            "eos_token and save it again"
        )
    start = document_start(tokenizer)
    if conversations:
        for ids in conversation_ids(texts, tokenizer):
            begun = ids[: len(start)] == start
            yield [*([] if begun else start), *ids, *([] if ids[-1:] == [eos] else [eos])]
        return
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


def document_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a document begins with: BOS, or nothing where the tokenizer has none but its EOS."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos != tokenizer.eos_token_id else []


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
        # Truncation and padding are left over from earlier calls.
        state = json.loads(backend.to_str()) | {"truncation": None, "padding": None}
        digest.update(json.dumps(state).encode())
        return digest.hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
