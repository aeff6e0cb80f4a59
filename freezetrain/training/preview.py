"""`freezetrain train RECIPE --dry_run --show N`: some sequences of the run, as text."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from freezetrain.data.packing import Packed
from freezetrain.data.rehearsed import Rehearsed
from freezetrain.data.streamed import Ahead, Streamed
from freezetrain.escaping import visible
from freezetrain.training.data import TextData

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

_LOOKED_THROUGH = 2**14  # places, for one of each kind

_ENDS = 600, 200  # characters shown of the beginning and the end of what is longer

_NEW, _GOES_ON = "a document", "goes on from an earlier sequence"

_TEXT, _MARK, _MORE = "| ", "-- ", "      "


@dataclass(frozen=True)
class Part:
    """What lies between two borders of a sequence; ``mark`` says what begins here."""

    mark: str
    text: str


@dataclass(frozen=True)
class Shown:
    """A sequence for people. Each line of a text begins with a bar, and a border is a line of its
    own with none: no text can look like one, nor turn one around by its direction of writing. A
    heading that is longer than a line goes on behind blanks."""

    heading: str
    parts: list[Part]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> Iterator[Text]:
        heading = Text(visible(self.heading), "bold")
        width = max(1, options.max_width - len(_MORE))
        for number, row in enumerate(heading.wrap(console, width, overflow="fold")):
            yield Text(_MORE if number else "").append_text(row)
        for part in self.parts:
            if part.mark:
                yield Text(_MARK + part.mark, "cyan")
            for line in _shortened(part.text):
                width = max(1, options.max_width - len(_TEXT))
                for row in Text(line).wrap(console, width, overflow="fold") or [Text()]:
                    yield Text(_TEXT).append_text(row)


def _shortened(text: str) -> Iterator[str]:
    """Its lines, each with what cannot be seen spelt; where it is long, the ends of it."""
    first, last = _ENDS
    left_out = len(text) - first - last
    if left_out > 0:
        text = f"{text[:first]} [… {left_out:,} characters …] {text[-last:]}"
    return map(visible, text.split("\n"))


def preview(data: TextData, tokenizer: PreTrainedTokenizerBase, count: int) -> list[Shown]:
    """``count`` sequences at places of the run, in their order: the first of each kind, trained
    on, replayed and rehearsed, as far as there is room, then the first ones."""
    order, sources = data.order, data.sources
    languages, sequences = order.places(0, min(order.length, max(count, _LOOKED_THROUGH)))
    kinds = [_kind(data, name) for name in order.languages]
    first = {kinds[number]: place for place, number in reversed([*enumerate(languages.tolist())])}
    chosen = list(dict.fromkeys([*sorted(first.values()), *range(len(languages))]))[:count]
    streamed = {name: part for name, part in sources.items() if isinstance(part, Streamed)}
    ahead, held = Ahead(streamed, order, data.settings.step_sequences), 0
    ahead.apart = False
    shown = []
    for place in sorted(chosen):
        for step in range(held, place // data.settings.step_sequences + 1):
            ahead.hold(step)
            held = step + 1
        name, number = order.languages[languages[place]], int(sequences[place])
        source = sources[name]
        what, of = f"{name}, {_kind(data, name)}", ""
        if isinstance(source, Rehearsed):
            what = f"{_kind(data, name)}: drawn by {source.rehearsal.made.base.name or 'the base'}"
            parts = _of_rehearsed(source, number, tokenizer)
        elif isinstance(source, Streamed):
            parts = _of_streamed(source, number, tokenizer)
        else:
            parts = _of_packed(source, number, tokenizer)
        if not isinstance(source, Streamed):
            of = f" of {len(source):,}"
        heading = f"place {place + 1:,} of {order.length:,}: {what}"
        shown.append(Shown(f"{heading}; sequence {number + 1:,}{of}", parts))
    return shown


def _kind(data: TextData, name: str) -> str:
    if name in data.packed:
        return "trained on"
    return "replayed" if name in data.replayed else "rehearsed"


def _of_packed(packed: Packed, number: int, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    ids = packed.sequence(number)["input_ids"]
    length, store = packed.sequence_length, packed.store
    first = number * length
    end = min(length, len(store) - first)  # of the texts, which the last sequence may reach
    marks = {0: _GOES_ON}
    marks |= dict.fromkeys((store.starts(first, first + end) - first).tolist(), _NEW)
    if end < length:
        marks |= dict.fromkeys((store.starts(0, length - end) + end).tolist(), _NEW)
        marks[end] = "the texts' beginning again: fills the sequence up, and is not learned"
    return _parts(ids, marks, tokenizer)


def _of_streamed(streamed: Streamed, number: int, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    starts = streamed.starts(number)
    marks = {0: _GOES_ON} | dict.fromkeys(starts[starts < streamed.sequence_length].tolist(), _NEW)
    return _parts(streamed.sequence(number)["input_ids"], marks, tokenizer)


def _of_rehearsed(rows: Rehearsed, number: int, tokenizer: PreTrainedTokenizerBase) -> list[Part]:
    starts, filled = rows.borders(number)
    marks = dict.fromkeys(starts, "a sequence that was drawn")
    parts = _parts(rows.sequence(number)["input_ids"][:filled], marks, tokenizer)
    if filled < rows.sequence_length:
        parts.append(Part(f"{rows.sequence_length - filled:,} places hold nothing", ""))
    return parts


def _parts(
    ids: np.ndarray, marks: dict[int, str], tokenizer: PreTrainedTokenizerBase
) -> list[Part]:
    places = [*sorted(marks), len(ids)]
    return [
        Part(marks[first], str(tokenizer.decode(ids[first:last].tolist())))
        for first, last in pairwise(places)
    ]
