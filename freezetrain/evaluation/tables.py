"""Forgetting, and the texts it is measured on, as tables."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.markup import escape
from rich.table import Table
from tokenizers.pre_tokenizers import ByteLevel

from freezetrain.evaluation.documents import Document
from freezetrain.evaluation.figures import Figures
from freezetrain.evaluation.losses import Forgetting, Interval, forgetting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def forgetting_table(
    before: Mapping[str, Figures],
    after: Mapping[str, Figures],
    target: str | None = None,
    *,
    found: Forgetting | None = None,
    title: str | None = None,
    rows: int | None = None,
) -> Table:
    """The target language and the held-out ones, most forgotten first, with their mean below.

    ``rows`` limits the held-out languages that are shown, None shows all. ``found``: what comparing
    document by document gave; changes whose 95% interval holds 0 are then marked. Takes what
    ``forgetting`` takes and raises what it raises.
    """
    result = found or forgetting(before, after, target)
    intervals = [result.target_gain_interval, result.mean_interval]
    intervals += [change.interval for change in result.languages.values()]
    order = sorted(
        result.languages, key=lambda language: -result.languages[language].delta_nll_per_byte
    )
    shown = order if rows is None else order[:rows]
    table = Table(title=title and escape(title), title_justify="left", show_footer=True)
    table.add_column("language", footer=f"mean of {len(order)} held out")
    table.add_column("perplexity", justify="right")
    table.add_column("bits/byte", justify="right")
    table.add_column(
        "Δ nats/byte", justify="right", footer=_change(result.mean, result.mean_interval)
    )
    table.add_column("perplexity ×", justify="right")
    if target is not None and result.target_gain is not None:
        ratio = forgetting({target: before[target]}, {target: after[target]}).languages[target]
        table.add_row(
            f"{escape(target)} (target)",
            *_figures(after[target]),
            _change(ratio.delta_nll_per_byte, result.target_gain_interval),
            _ratio(ratio.perplexity_ratio),
            style="green",
            end_section=True,
        )
    for language in shown:
        change = result.languages[language]
        table.add_row(
            escape(language),
            *_figures(after[language]),
            _change(change.delta_nll_per_byte, change.interval),
            _ratio(change.perplexity_ratio),
        )
    captions = []
    if any(_holds_zero(interval) for interval in intervals):
        captions.append("≈: cannot be told from chance")
    if len(shown) < len(order):
        captions.append(f"{len(order) - len(shown)} less forgotten languages are not shown")
    table.caption = "; ".join(captions) or None
    return table


def _holds_zero(interval: Interval | None) -> bool:
    return interval is not None and interval[0] <= 0 <= interval[1]


def _change(value: float, interval: Interval | None) -> str:
    return f"≈ {value:+.4f}" if _holds_zero(interval) else f"{value:+.4f}"


def _figures(figures: Figures) -> tuple[str, str]:
    return f"{figures.perplexity:.4g}", f"{figures.bits_per_byte:.4f}"


def _ratio(value: float | None) -> str:
    return "other tokens" if value is None else f"{value:.3f}"


def texts_rows(
    documents: Mapping[str, Sequence[Document]], tokenizer: "PreTrainedTokenizerBase"
) -> list[dict[str, Any]]:
    """A row a language, ready for JSON, of ``documents`` that ``tokenizer`` made the tokens of.

    ``documents``, ``bytes`` (UTF-8) and ``tokens`` are what is evaluated, ``unknown`` and
    ``byte_fallback`` shares of these tokens in [0, 1]. ``unknown``: tokens that stand for what the
    tokenizer does not know, and say nothing of the text; None where it has no such token.
    ``byte_fallback``: tokens that are pieces of a character: the 256 bytes ``<0x00>`` to ``<0xFF>``
    that SentencePiece falls back to, or, in byte-level BPE, those whose bytes are not valid UTF-8
    by themselves; None for a tokenizer of another kind. Where most tokens are of either kind, the
    model was hardly made for the language, and figures per token mean little.
    """
    unknown = tokenizer.unk_token_id
    fallback = byte_pieces(tokenizer)
    rows = []
    for language, texts in documents.items():
        counts = _counts(texts)
        total = int(counts.sum())
        rows.append(
            {
                "language": language,
                "documents": len(texts),
                "bytes": sum(document.bytes for document in texts),
                "tokens": total,
                "unknown": None if unknown is None else _share(counts, [unknown], total),
                "byte_fallback": None if fallback is None else _share(counts, fallback, total),
            }
        )
    return rows


def texts_table(rows: Iterable[Mapping[str, Any]], *, title: str | None = None) -> Table:
    """The rows of :func:`texts_rows` for people."""
    table = Table(title=title and escape(title), title_justify="left")
    table.add_column("language")
    for name in ("documents", "bytes", "tokens", "bytes/token", "unknown", "byte fallback"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            escape(row["language"]),
            *(f"{row[name]:,}" for name in ("documents", "bytes", "tokens")),
            f"{row['bytes'] / row['tokens']:.2f}",
            *(_percent(row[name]) for name in ("unknown", "byte_fallback")),
        )
    return table


def byte_pieces(tokenizer: "PreTrainedTokenizerBase") -> set[int] | None:
    """Ids of the tokens that are pieces of a character; None where the tokenizer has no such kind.

    The kind is told by its vocabulary, which holds either all 256 bytes as SentencePiece spells
    them, or all 256 characters that byte-level BPE writes bytes with.
    """
    vocabulary = tokenizer.get_vocab()
    spelled = {token: number for token, number in vocabulary.items() if _SPELLED.fullmatch(token)}
    if len(spelled) == 256:
        return set(spelled.values())
    alphabet = _byte_alphabet()
    if not alphabet.keys() <= vocabulary.keys():
        return None
    added = tokenizer.added_tokens_encoder  # these are spelled as they are, not in the alphabet
    return {
        number
        for token, number in vocabulary.items()
        if token not in added and alphabet.keys() >= set(token) and not _whole(token, alphabet)
    }


_SPELLED = re.compile(r"<0x[0-9A-F]{2}>")


def _byte_alphabet() -> dict[str, int]:
    """The byte that each character of byte-level BPE stands for.

    As GPT-2 chose them: printable Latin-1 characters are their own bytes, and the other bytes are,
    in order, the characters from 256 on (https://github.com/openai/gpt-2, src/encoder.py).
    """
    characters = sorted(ByteLevel.alphabet())
    own = {character: ord(character) for character in characters if ord(character) < 256}
    others = [character for character in characters if character not in own]
    rest = sorted(set(range(256)) - set(own.values()))
    return {**own, **dict(zip(others, rest, strict=True))}


def _whole(token: str, alphabet: Mapping[str, int]) -> bool:
    try:
        bytes(alphabet[character] for character in token).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _counts(texts: Iterable[Document]) -> np.ndarray:
    """How often each token is predicted: [largest id + 1] int64."""
    return np.bincount(np.concatenate([np.array(text.ids[1:]) for text in texts]))


def _share(counts: np.ndarray, tokens: Iterable[int], total: int) -> float:
    return int(counts[[token for token in tokens if token < len(counts)]].sum()) / total


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.2%}"
