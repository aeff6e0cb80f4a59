"""The paper's claims, and whether each holds on the model at hand; also where none can be told."""

from collections.abc import Mapping
from typing import Any

from freezetrain.report import claim_checks

Results = Mapping[str, Any]
Claim = dict[str, Any]


def paper_claims(results: Results) -> list[Claim]:
    """``claim``, ``paper`` (what the paper says), ``holds`` (None: cannot be told) and ``seen``."""
    return [
        _claim(
            "Removing the core hurts every language more than removing as many random weights, or "
            "those with the lowest scores",
            "Without the 1% of the weights with the highest scores the model loses its ability in "
            "all 30 languages; without as many random ones it hardly does.",
            claim_checks.core(results),
        ),
        _claim(
            "The weights with the lowest scores are hardly needed",
            "Without the weights with the lowest scores the model stays nearly as it was.",
            claim_checks.bottom(results),
        ),
        _claim(
            "A single weight can break the model",
            "One norm weight of LLaMA-2-13B multiplied by 4, in layer 1 at dimension 2100, takes "
            "the perplexity of Chinese from 5.86 to 257.7.",
            claim_checks.single_weights(results),
        ),
        _claim(
            "The core gathers on few dimensions of the residual stream: rows of the matrices that "
            "write to it, columns of those that read from it",
            "The region gathers on rows in attention output and MLP down projections, on columns "
            "in query, key, value, up and gate projections.",
            claim_checks.directions(results),
        ),
        _claim(
            "Removing the rows and columns on which the core gathers most hurts every language "
            "more than removing as many random ones",
            "The model depends on few dimensions, on which the core lies.",
            claim_checks.dimensions(results),
        ),
        _claim(
            "The region of a language alone hurts that language most",
            "Regions of single languages exist, and removing one harms its own language above "
            "all, and languages that are close to it.",
            claim_checks.selectivity(results),
        ),
        _claim(
            "The regions are stable: other texts of a language, or fewer, give much the same",
            "The paper scores 10,000 and 100,000 sequences of each language.",
            claim_checks.stability(results),
        ),
    ]


def _claim(claim: str, paper: str, found: claim_checks.Check) -> Claim:
    return {"claim": claim, "paper": paper, "holds": found[0], "seen": found[1]}
