"""Forgetting: what further pre-training on a target language cost the held-out languages."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation.figures import Figures, finite_or_none, safe_exp


@dataclass(frozen=True)
class LanguageForgetting:
    """One language, adapted against base."""

    delta_nll_per_byte: float  # nats per UTF-8 byte, adapted − base: positive = forgotten
    perplexity_ratio: float | None  # adapted / base; None if the two used different tokens


@dataclass(frozen=True)
class Forgetting:
    """Forgetting of the held-out languages, and the gain of the target language.

    All but the perplexity ratios are in nats per UTF-8 byte.
    """

    languages: dict[str, LanguageForgetting]  # held-out languages, in the order they were given
    mean: float  # mean of delta_nll_per_byte over the held-out languages, each counted once
    worst: tuple[str, float]  # the held-out language forgotten most, its delta_nll_per_byte
    backward_transfer: float  # mean over held-out languages of base − adapted: negative = forgotten
    target: str | None
    target_gain: float | None  # base − adapted of the target language: positive = learnt

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        data = asdict(self)
        data["worst"] = {"language": self.worst[0], "delta_nll_per_byte": self.worst[1]}
        for language in data["languages"].values():
            language["perplexity_ratio"] = finite_or_none(language["perplexity_ratio"])
        return data


def forgetting(
    before: Mapping[str, Figures], after: Mapping[str, Figures], target: str | None = None
) -> Forgetting:
    """Compare the adapted model's figures ``after`` with the base's figures ``before``.

    All languages but ``target`` are held out. The backward transfer is that of Lopez-Paz and
    Ranzato (2017, arXiv 1706.08840), with NLL per byte in the place of an accuracy.

    Raises ``UserError`` if the two hold other languages or other texts, if ``target`` is not one
    of the languages, or if no language is held out.
    """
    _check(before, after, target)
    languages = {
        language: _compare(before[language], after[language])
        for language in before
        if language != target
    }
    deltas = {language: value.delta_nll_per_byte for language, value in languages.items()}
    mean = fmean(deltas.values())
    worst = max(deltas, key=deltas.__getitem__)
    gain = None
    if target is not None:
        gain = before[target].nll_per_byte - after[target].nll_per_byte
    return Forgetting(
        languages=languages,
        mean=mean,
        worst=(worst, deltas[worst]),
        backward_transfer=0.0 - mean,  # never −0.0
        target=target,
        target_gain=gain,
    )


def _compare(before: Figures, after: Figures) -> LanguageForgetting:
    ratio = None
    if before.tokens == after.tokens:
        ratio = safe_exp((after.nll - before.nll) / before.tokens)
    return LanguageForgetting(after.nll_per_byte - before.nll_per_byte, ratio)


def _check(before: Mapping[str, Figures], after: Mapping[str, Figures], target: str | None) -> None:
    if before.keys() != after.keys():
        odd = sorted(before.keys() ^ after.keys())
        raise UserError(
            "expected the same languages before and after, but only one of the two has "
            f"{', '.join(odd)}; evaluate both models on the same languages"
        )
    for language in before:
        if before[language].bytes != after[language].bytes:
            raise UserError(
                f"expected the same text before and after, got {before[language].bytes} and "
                f"{after[language].bytes} bytes of {language!r}; evaluate both on the same text"
            )
    if target is not None and target not in before:
        raise UserError(
            f"the target language {target!r} is not among the evaluated languages "
            f"{', '.join(before)}{near_misses(target, before)}; add its documents"
        )
    if not before.keys() - {target}:
        raise UserError(
            "expected at least one held-out language besides the target, got none; "
            "add documents of the languages to watch"
        )
