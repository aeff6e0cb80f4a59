"""The order of the sequences, a function of seed and place alone: a run resumes exactly."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from freezetrain.errors import UserError, near_misses
from freezetrain.sequences.mixture import Mixture
from freezetrain.sequences.shuffle import permuted


@dataclass(frozen=True)
class Pool:
    """Languages whose sequences are shuffled together, epoch after epoch, and their share."""

    languages: tuple[str, ...]
    share: float


def pools(
    tokens: Mapping[str, int],
    weights: Mapping[str, float],
    temperature: float,
    name: str = "weights",
) -> list[Pool]:
    """Pools of languages that have so many ``tokens``; their shares sum to 1.

    By size they are one pool, so that each epoch is every sequence once. With ``weights``, or a
    ``temperature`` T other than 1 (shares proportional to tokens to the power 1/T: Arivazhagan et
    al., arXiv 1907.05019, section 3.2), each language is its own.

    Raises UserError as :func:`check_weights` does.
    """
    check_weights(tokens, weights, name)
    if not weights and temperature == 1:
        return [Pool(tuple(tokens), 1.0)]
    most = max(tokens.values())
    shares = weights or {
        language: (count / most) ** (1 / temperature) for language, count in tokens.items()
    }
    total = sum(shares.values())
    return [Pool((language,), shares[language] / total) for language in tokens]


def check_weights(
    languages: Collection[str], weights: Mapping[str, float], name: str = "weights"
) -> None:
    """UserError unless ``weights`` (``name`` in the recipe) names all languages and no other."""
    for language in weights:
        if language not in languages:
            raise UserError(
                f"{name} has language {language!r}, which is not read"
                f"{near_misses(language, languages)}; the languages are {' '.join(languages)}"
            )
    if weights and (missing := [language for language in languages if language not in weights]):
        raise UserError(f"{name} must name every language; {missing[0]!r} is missing")


class Order:
    """Which sequence of which language stands at each of ``length`` places.

    ``sizes`` are the sequences of each language. ``replayed`` pools get ``replay_share`` of the
    places before ``until`` and none after it, ``target`` pools the rest. Each pool goes through
    shuffled epochs of its own. Nothing is laid out in advance: a place is computed from the seed
    when it is asked for.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        target: Sequence[Pool],
        length: int,
        seed: int,
        replayed: Sequence[Pool] = (),
        replay_share: float = 0.0,
        until: int = 0,
    ) -> None:
        self.languages = list(sizes)
        self.length = length
        self._pools = [*target, *replayed]
        self._seed = seed
        self._numbers = [
            np.array([self.languages.index(name) for name in pool.languages])
            for pool in self._pools
        ]
        self._ends = [np.cumsum([sizes[name] for name in pool.languages]) for pool in self._pools]
        alone = np.array([pool.share for pool in target] + [0.0] * len(replayed))
        mixed = np.array(
            [pool.share * (1 - replay_share) for pool in target]
            + [pool.share * replay_share for pool in replayed]
        )
        self._until = min(until, length) if replayed else 0
        self._early = Mixture(mixed, self._until, seed)
        self._late = Mixture(alone, length - self._until, seed)
        self._drawn_early = self._early.drawn(self._until)
        told = [list(sizes.items()), [[pool.languages, pool.share] for pool in self._pools]]
        told += [seed, replay_share, until if replayed else 0]
        self.digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def places(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """At places ``first`` to ``last``, the last excluded: number of the language in
        ``languages``, and number of its sequence; int64 each."""
        border = min(max(self._until, first), last)
        pools, nth = self._early.places(first, border)
        if border < last:
            late, late_nth = self._late.places(border - self._until, last - self._until)
            pools = np.concatenate([pools, late])
            nth = np.concatenate([nth, late_nth + self._drawn_early[late]])
        language, sequence = np.empty_like(pools), np.empty_like(pools)
        for pool in np.unique(pools).tolist():
            mine = pools == pool
            language[mine], sequence[mine] = self._draw(pool, nth[mine])
        return language, sequence

    def _draw(self, pool: int, nth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ends = self._ends[pool]
        size = int(ends[-1])
        epochs, places = np.divmod(nth, size)
        items = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            items[mine] = permuted(places[mine], size, (self._seed, 2, pool, epoch))
        which = np.searchsorted(ends, items, side="right")
        starts = np.concatenate([[0], ends[:-1]])
        return self._numbers[pool][which], items - starts[which]

    @cached_property
    def epochs(self) -> dict[str, float]:
        """How often the run goes through each language's sequences; where several are one pool,
        through all of that pool's."""
        drawn = self._drawn_early + self._late.drawn(self.length - self._until)
        return {
            name: float(count / ends[-1])
            for pool, count, ends in zip(self._pools, drawn, self._ends, strict=True)
            for name in pool.languages
        }
