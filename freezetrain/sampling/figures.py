"""What was drawn, language by language: counts, what the k tokens hold, examples."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from freezetrain.escaping import shortened
from freezetrain.files import readable
from freezetrain.formats import fixed, language_and_code
from freezetrain.rehearsal import Rehearsal
from freezetrain.rehearsal.pieces import (
    Made,
    Piece,
    bytes_of_place,
    piece_file,
    read_piece,
)
from freezetrain.run_folder import Outcome
from freezetrain.sampling.draw import drawn_places, surprise
from freezetrain.tables import Column, Table
from freezetrain.typed_json import to_json

_EXAMPLES = 3  # of each language

_LONGEST = 160  # characters of an example in the terminal; results.json has all of it

_SHOWN = 24  # examples in the terminal


@dataclass(frozen=True)
class Example:
    """A sequence as text."""

    given: str
    drawn: str


@dataclass
class Rehearsed:
    """The sequences of one language that was asked for, or of none."""

    language: str | None
    """None: nothing was asked for, sequences begin with BOS alone."""
    sequences: int
    ended: int
    """Sequences that the base ended before they were full."""
    tokens: int
    drawn: int
    """Tokens that were drawn, not given."""
    bytes: int
    """On disk."""
    top_k_mass: float
    """Mean probability of the k tokens that are kept, over all places."""
    entropy: float
    """Mean entropy of the next token at all places, nats, all tokens beyond the k being one."""
    drawn_nll: float | None
    """Mean NLL of drawn tokens, nats, all beyond the k being one; None where none was drawn."""
    drawn_entropy: float | None
    """What that is expected to be at temperature 1."""
    examples: list[Example]

    @property
    def mean_length(self) -> float:
        return self.tokens / self.sequences


@dataclass(frozen=True)
class Results:
    """What results.json holds."""

    rehearsed: list[Rehearsed]
    pieces: int
    k: int
    vocabulary: int
    bytes: int
    """Of all pieces' files."""
    digest: str
    """SHA-256 of what all pieces hold, as training compares it."""


def outcome_of(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Outcome:
    """Results and tables of a finished folder. UserError where a piece is missing or damaged."""
    rehearsal = Rehearsal(folder)
    made = rehearsal.made
    found: list[Rehearsed | None] = [None] * len(made.languages)
    for number in range(made.pieces):
        piece, _, _ = read_piece(folder, number)
        for language in sorted(set(piece.language.tolist())):
            part = _rehearsed(made, _of_language(piece, language), language, tokenizer)
            found[language] = _together(found[language], part)
    rows = [row for row in found if row is not None]
    files = (piece_file(folder, number) for number in range(made.pieces))
    size = sum(file.stat().st_size for file in files)
    results = Results(rows, made.pieces, made.k, made.vocabulary, size, rehearsal.digest)
    display = [_table(results, made), *_examples(rows)]
    return Outcome(to_json(results), [*display, f"{readable(size)} in {folder / 'pieces'}"])


def _of_language(piece: Piece, language: int) -> Piece:
    """The sequences of one language of a piece."""
    own = piece.language == language
    lengths = piece.starts.diff()
    places = own.repeat_interleave(lengths)
    targets = piece.targets
    return Piece(
        tokens=piece.tokens.long()[places],
        starts=torch.cat([torch.zeros(1, dtype=torch.int64), lengths[own].cumsum(0)]),
        language=piece.language[own],
        given=piece.given[own],
        targets=type(targets)(
            targets.tokens.long()[places], targets.log_probs[places], targets.rest[places]
        ),
    )


def _rehearsed(
    made: Made, piece: Piece, language: int, tokenizer: PreTrainedTokenizerBase
) -> Rehearsed:
    lengths = piece.starts.diff()
    probabilities = piece.targets.probabilities()
    nll, entropy, _ = surprise(piece)
    drawn = int(drawn_places(piece).sum())
    return Rehearsed(
        language=made.languages[language],
        sequences=len(lengths),
        ended=int((lengths < made.sequence_length).sum()),
        tokens=len(piece.tokens),
        drawn=drawn,
        bytes=len(piece.tokens) * bytes_of_place(made.vocabulary, made.k),
        top_k_mass=float(1 - probabilities[:, -1].double().mean()),
        entropy=float(torch.special.entr(probabilities).sum(dim=1).double().mean()),
        drawn_nll=float(nll.double().mean()) if drawn else None,
        drawn_entropy=float(entropy.double().mean()) if drawn else None,
        examples=[_example(piece, row, tokenizer) for row in range(min(_EXAMPLES, len(lengths)))],
    )


def _example(piece: Piece, row: int, tokenizer: PreTrainedTokenizerBase) -> Example:
    first, last = piece.starts[row : row + 2].tolist()
    # A model may have more tokens than its tokenizer knows.
    ids = [token for token in piece.tokens[first:last].tolist() if token < len(tokenizer)]
    given = int(piece.given[row])
    return Example(str(tokenizer.decode(ids[:given])), str(tokenizer.decode(ids[given:])))


def _together(one: Rehearsed | None, other: Rehearsed) -> Rehearsed:
    if one is None:
        return other
    tokens, drawn = one.tokens + other.tokens, one.drawn + other.drawn

    def mean(name: str, first: int, second: int) -> float | None:
        values = getattr(one, name), getattr(other, name)
        weighed = [(v, n) for v, n in zip(values, (first, second), strict=True) if n]
        total = sum(n for _, n in weighed)
        return sum(v * n for v, n in weighed) / total if total else None

    return Rehearsed(
        language=one.language,
        sequences=one.sequences + other.sequences,
        ended=one.ended + other.ended,
        tokens=tokens,
        drawn=drawn,
        bytes=one.bytes + other.bytes,
        top_k_mass=mean("top_k_mass", one.tokens, other.tokens) or 0.0,
        entropy=mean("entropy", one.tokens, other.tokens) or 0.0,
        drawn_nll=mean("drawn_nll", one.drawn, other.drawn),
        drawn_entropy=mean("drawn_entropy", one.drawn, other.drawn),
        examples=[*one.examples, *other.examples][:_EXAMPLES],
    )


def _named(language: str | None) -> str:
    return "(none: from BOS)" if language is None else language_and_code(language)


def _table(results: Results, made: Made) -> Table:
    columns = [
        Column("asked for", lambda row: _named(row.language), text=True),
        *(Column(name, name) for name in ("sequences", "tokens", "drawn")),
        Column("mean length", "mean_length", lambda value: fixed(value, 1)),
        Column("bytes", "bytes", readable),
        Column(f"mass of the top {made.k}", "top_k_mass", lambda value: fixed(value, 4)),
        Column("entropy, nats/token", "entropy", lambda value: fixed(value, 3)),
        Column("NLL of drawn tokens", "drawn_nll", lambda value: fixed(value, 3)),
        Column("expected", "drawn_entropy", lambda value: fixed(value, 3)),
    ]
    return Table("sequences to rehearse", columns, results.rehearsed)


def _examples(rows: list[Rehearsed]) -> list[Table]:
    each = max(1, min(_EXAMPLES, _SHOWN // max(1, len(rows))))
    shown = [(row.language, example) for row in rows for example in row.examples[:each]]
    columns = [
        Column("asked for", lambda item: _named(item[0]), text=True),
        Column("given", lambda item: shortened(item[1].given, _LONGEST), text=True),
        Column("drawn", lambda item: shortened(item[1].drawn, _LONGEST) or "–", text=True),
    ]
    return [Table("examples", columns, shown)]
