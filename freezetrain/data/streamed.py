"""Sequences of streams: which blocks a run needs when, and a process that reads ahead of it."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from freezetrain.data.order import BLOCK, Order
from freezetrain.data.streams import Block, Stream, blocks
from freezetrain.errors import CheckError, UserError
from freezetrain.nll import NO_LABEL
from freezetrain.ranks import end_with_parent, on_first_rank


class Streamed:
    """Sequences of ``sequence_length`` L tokens of a stream, cut as :class:`Packed` cuts them.

    There is no last one: where the texts end they begin again. Those of the blocks in ``held``
    can be read, which :class:`Ahead` sees to.
    """

    def __init__(
        self,
        stream: Stream,
        sequence_length: int,
        document_mask: bool = False,
        block: int = BLOCK,
    ) -> None:
        self.block = block
        self.stream = stream
        self.sequence_length = sequence_length
        self.document_mask = document_mask
        self.held: dict[int, Block] = {}
        self.facts: dict[str, int] = {}
        """What was read of the language so far, for the blocks that were given out."""

    @property
    def content(self) -> list[Any]:
        """What decides the sequences, JSON-able."""
        return [self.stream.digest, self.sequence_length, self.block]

    def take(self, block: Block, first: int) -> None:
        """Hold ``block``, and none before the block ``first``."""
        self.held = {number: kept for number, kept in self.held.items() if number >= first}
        self.held[block.number] = block
        self.facts = block.facts

    def labels(self, sequences: np.ndarray) -> np.ndarray:
        """How many labels count in each of ``sequences``."""
        count = np.full(len(sequences), self.sequence_length, dtype=np.int64)
        if self.document_mask:
            count -= [int((self.starts(number) > 0).sum()) for number in sequences.tolist()]
        return count

    def starts(self, number: int) -> np.ndarray:
        """Places 0 to L, L included, of sequence ``number`` at which a document starts."""
        block, first = self._at(number)
        starts = block.starts - first
        return starts[(starts >= 0) & (starts <= self.sequence_length)]

    def sequence(self, number: int) -> dict[str, np.ndarray]:
        """Sequence ``number``: input_ids, labels, position_ids with document_mask; [L] int64."""
        length = self.sequence_length
        block, first = self._at(number)
        stream = block.tokens[first : first + length + 1].astype(np.int64)
        ids, labels = stream[:-1], stream[1:].copy()
        if not self.document_mask:
            return {"input_ids": ids, "labels": labels}
        starts = self.starts(number)
        labels[starts[starts > 0] - 1] = NO_LABEL
        begin = np.zeros(length, dtype=np.int64)
        inside = starts[starts < length]
        begin[inside] = inside
        positions = np.arange(length) - np.maximum.accumulate(begin)
        return {"input_ids": ids, "labels": labels, "position_ids": positions}

    def _at(self, number: int) -> tuple[Block, int]:
        block, place = divmod(number, self.block)
        return self.held[block], place * self.sequence_length


Needed = dict[str, list[int]]
"""Language → numbers of the blocks that an optimizer step takes sequences of, ascending."""


class Ahead:
    """Sees to it that the blocks of each optimizer step are held on every rank when it comes.

    Rank 0 alone reads: a process of its own prepares the blocks in the order of their need, one
    ahead. All ranks must call :meth:`hold` for the same steps, one after another.
    """

    apart = True
    """Read in another process."""

    def __init__(self, streamed: Mapping[str, Streamed], order: Order, step: int) -> None:
        """``step``: sequences of an optimizer step."""
        self._streamed = dict(streamed)
        self._order = order
        self._step = step
        self._states: dict[str, dict[int, Any]] = {}
        self._reader: Iterator[tuple[str, Block]] | None = None
        self._begun = False

    def hold(self, step: int) -> None:
        """Raises UserError, on all ranks, for what the reader comes upon."""
        if not self._streamed:
            return
        if not self._begun:
            for streamed in self._streamed.values():
                streamed.held = {}
            self._begun = True
        needed = needed_blocks(self._order, self._streamed, self._step, step)
        missing = {
            name: [number for number in numbers if number not in self._streamed[name].held]
            for name, numbers in needed.items()
        }
        for name, numbers in missing.items():
            for number in numbers:
                block = on_first_rank(partial(self._next, step, name, number))
                self._streamed[name].take(block, needed[name][0])

    def _next(self, step: int, name: str, number: int) -> Block:
        if self._reader is None:
            work = (
                {name: streamed.stream for name, streamed in self._streamed.items()},
                next(iter(self._streamed.values())).sequence_length,
                self._order,
                self._step,
                step,
                self._states,
            )
            self._reader = _in_process(work) if self.apart else read_blocks(*work)
        read, block = next(self._reader)
        if (read, block.number) != (name, number):
            raise CheckError(
                f"the reader gave block {block.number} of {read!r} where {number} of {name!r} was "
                "needed; please report it"
            )
        return block

    def state_dict(self) -> dict[str, Any]:
        """Where the blocks that are held begin, and what was read when they were: language → number
        → state."""
        return {
            name: {n: {**block.state, "read": block.facts} for n, block in streamed.held.items()}
            if self._begun and streamed.held
            else self._states.get(name, {})
            for name, streamed in self._streamed.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._states = {name: dict(blocks) for name, blocks in state.items()}
        self._reader, self._begun = None, False
        for name, known in self._states.items():
            if known:
                self._streamed[name].facts = known[max(known)]["read"]


def needed_blocks(order: Order, names: Mapping[str, Any], sequences: int, step: int) -> Needed:
    """Blocks of the streams ``names`` that optimizer step ``step``, of so many ``sequences``,
    takes sequences of."""
    languages, numbers = order.places(step * sequences, (step + 1) * sequences)
    needed = {}
    for name in names:
        mine = numbers[languages == order.languages.index(name)]
        if len(mine):
            needed[name] = np.unique(mine // order.block).tolist()
    return needed


def read_blocks(
    streams: Mapping[str, Stream],
    sequence_length: int,
    order: Order,
    sequences: int,
    first: int,
    states: Mapping[str, Mapping[int, Any]],
) -> Iterator[tuple[str, Block]]:
    """Each block with its language, at the first optimizer step from ``first`` on that needs it."""
    reading: dict[str, Iterator[Block]] = {}
    last: dict[str, int] = {}
    for step in range(first, order.length // sequences):
        for name, numbers in needed_blocks(order, streams, sequences, step).items():
            for number in numbers:
                if number <= last.get(name, -1):
                    continue
                if name not in reading:
                    known = states.get(name, {})
                    begin = max((n for n in known if n <= number), default=0)
                    reading[name] = blocks(
                        streams[name], sequence_length, order.block, begin, known.get(begin)
                    )
                last[name] = number
                yield name, next(block for block in reading[name] if block.number == number)


def _in_process(work: tuple[Any, ...]) -> Iterator[tuple[str, Block]]:
    """What :func:`read_blocks` gives, from a process that is a block ahead."""
    context = multiprocessing.get_context("spawn")  # a fork would share CUDA, threads and locks
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_read, args=(theirs, os.getpid(), work), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            try:
                given = ours.recv()
            except EOFError:
                process.join()
                raise UserError(
                    f"the process that reads the texts ended with {process.exitcode}; if it was "
                    "out of memory, give it more; the same command goes on"
                ) from None
            if given is None:
                return
            if isinstance(given, Exception):
                raise given
            yield given
    finally:
        process.kill()
        ours.close()


def _read(pipe: Connection, parent: int, work: tuple[Any, ...]) -> None:
    end_with_parent(parent)
    for stop in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):  # the trainer's to act on
        signal.signal(stop, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    try:
        for item in read_blocks(*work):
            pipe.send(item)  # waits until the one before it was taken
        pipe.send(None)
    except (UserError, CheckError) as error:
        pipe.send(error)
    except (BrokenPipeError, ConnectionResetError):
        pass
