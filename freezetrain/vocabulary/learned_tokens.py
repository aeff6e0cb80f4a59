"""New tokens for a tokenizer, learned from text: its byte pair encoding, trained further.

Training goes on where the base's ended: each step merges the pair of adjacent tokens that saves
most tokens, and the new merges come after all old ones. So a text is first split as it was, then
pieces are joined: every new token is a row of old ones, and text in which no new pair occurs keeps
its tokens. Tokens learned apart from the old ones and matched in the raw text (`add_tokens`) would
cut words of other languages open.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", arXiv
1508.07909, algorithm 1, started from the base's tokens instead of from characters.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from tokenizers import Tokenizer

from freezetrain.errors import UserError

_BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}  # how BPE with byte_fallback names them

_WORD_START = "\u2581"  # what stands for a space in tokenizers of SentencePiece's kind


@dataclass
class Learned:
    """New tokens, in the order in which they were learned."""

    tokens: list[str] = field(default_factory=list)
    merges: list[tuple[str, str]] = field(default_factory=list)
    """The two tokens that each is merged from; a token that is a character is not merged."""


def learn_tokens(tokenizer: Tokenizer, texts: Iterable[str], count: int) -> Learned:
    """The ``count`` new tokens that save most tokens of ``texts``, one after the other.

    A character that the tokenizer has only bytes for can be learned too. Raises UserError for a
    tokenizer that is no byte pair encoding, and where no pair is left that occurs twice.
    """
    kind = json.loads(tokenizer.to_str())["model"]["type"]
    if kind != "BPE":
        raise UserError(
            f"learn needs a tokenizer of byte pair encoding, got {kind}; give the new tokens in a "
            "file"
        )
    words: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words.update(_words(tokenizer, text))
    growth = _Growth(words, set(tokenizer.get_vocab()))
    while len(growth.learned.tokens) < count:
        if not growth.step():
            raise UserError(
                f"learn asks for {count} tokens and only {len(growth.learned.tokens)} occur twice "
                "or more in the texts; ask for fewer or give more texts"
            )
    return growth.learned


def _words(tokenizer: Tokenizer, text: str) -> Iterator[tuple[str, ...]]:
    """The tokens of each word of ``text``; a character split into bytes stands for itself."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    word: list[str] = []
    before = None
    rows = zip(encoding.word_ids, encoding.offsets, encoding.tokens, strict=True)
    for number, offsets, tokens in _characters(rows):
        if word and (number != before or tokens[0].startswith(_WORD_START)):
            yield tuple(word)
            word = []
        before = number
        if tokens[0] not in _BYTES:
            word.append(tokens[0])
        elif bytes(_BYTES[token] for token in tokens) == text[slice(*offsets)].encode():
            word.append(text[slice(*offsets)])
        elif word:  # normalized to something else: nothing is learned across it
            yield tuple(word)
            word = []
    if word:
        yield tuple(word)


_Row = tuple[int | None, tuple[int, int], str]


def _characters(rows: Iterable[_Row]) -> Iterator[tuple[int | None, tuple[int, int], list[str]]]:
    """Tokens one by one, but the bytes of a character, which have the same offsets, together."""
    for (number, offsets, is_byte), group in groupby(
        rows, key=lambda row: (row[0], row[1], row[2] in _BYTES)
    ):
        tokens = [row[2] for row in group]
        for part in [tokens] if is_byte else [[token] for token in tokens]:
            yield number, offsets, part


class _Growth:
    """Words as tokens, and how many tokens each candidate would save.

    A candidate is a pair of adjacent tokens, or a character (a tuple of one) that is bytes so far.
    """

    def __init__(self, words: Counter[tuple[str, ...]], known: set[str]) -> None:
        self.learned = Learned()
        self._known = known
        self._words = [list(word) for word in words]
        self._counts = list(words.values())
        self._saved: Counter[tuple[str, ...]] = Counter()
        self._where: dict[tuple[str, ...], set[int]] = defaultdict(set)
        for number in range(len(self._words)):
            self._add(number, 1)
        self._queue = [(-saved, candidate) for candidate, saved in self._saved.items()]
        heapq.heapify(self._queue)

    def _add(self, number: int, sign: int) -> set[tuple[str, ...]]:
        """Count (1) or no longer count (-1) the candidates of a word; returns them."""
        word = self._words[number]
        candidates: set[tuple[str, ...]] = set()
        for token in word:
            if token not in self._known:
                self._saved[token,] += sign * self._counts[number] * (len(token.encode()) - 1)
                candidates.add((token,))
        for pair in pairwise(word):
            if self._known.issuperset(pair):
                self._saved[pair] += sign * self._counts[number]
                candidates.add(pair)
        if sign > 0:
            for candidate in candidates:
                self._where[candidate].add(number)
        return candidates

    def step(self) -> bool:
        """Learn one token; False where none occurs twice."""
        while self._queue:
            saved, candidate = heapq.heappop(self._queue)
            if -saved != self._saved[candidate]:
                continue  # counted anew since, and in the queue again
            if -saved < 2 * (len(candidate[0].encode()) - 1 if len(candidate) == 1 else 1):
                continue
            token = "".join(candidate)
            if len(candidate) == 2 and token in self._known:
                del self._saved[candidate]  # one that the tokenizer has, and merges otherwise
                continue
            self._learn(candidate, token)
            return True
        return False

    def _learn(self, candidate: tuple[str, ...], token: str) -> None:
        self.learned.tokens.append(token)
        if len(candidate) == 2:
            self.learned.merges.append((candidate[0], candidate[1]))
        changed: set[tuple[str, ...]] = set()
        numbers = sorted(self._where.pop(candidate))
        for number in numbers:
            changed |= self._add(number, -1)
        self._known.add(token)
        for number in numbers:
            if len(candidate) == 2:
                self._words[number] = _merged(self._words[number], candidate)
            changed |= self._add(number, 1)
        for other in changed:
            heapq.heappush(self._queue, (-self._saved[other], other))


def _merged(word: list[str], pair: tuple[str, ...]) -> list[str]:
    """``word`` with each occurrence of ``pair`` joined, from the left."""
    result: list[str] = []
    place = 0
    while place < len(word):
        if tuple(word[place : place + 2]) == pair:
            result.append(word[place] + word[place + 1])
            place += 2
        else:
            result.append(word[place])
            place += 1
    return result
