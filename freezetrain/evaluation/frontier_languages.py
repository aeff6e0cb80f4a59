"""What each held-out language loses at a gain."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from freezetrain.evaluation.frontier_curves import at_gain, curves, failure


def language_losses(
    runs: Sequence[Mapping[str, Any]], gain: float
) -> dict[str, dict[str, float | None]]:
    """Variant → language → loss at ``gain``, nats per byte, mean over the seeds that reach it.

    Read off curves as ``at_gain`` reads the mean loss; None where no seed reaches it. ``runs`` as
    ``compare_variants`` takes them, with ``languages`` (language → loss).
    """
    there = [run for run in runs if failure(run) is None]
    languages = list(dict.fromkeys(code for run in there for code in run["languages"]))
    found: dict[str, dict[str, float | None]] = {}
    for code in languages:
        of_code = [{**run, "mean": run["languages"][code]} for run in there]
        for name, of_seeds in curves(of_code).items():
            read = [at_gain(curve, gain, "mean") for curve in of_seeds.values()]
            losses = [one[0] for one in read if one is not None]
            found.setdefault(name, {})[code] = fmean(losses) if losses else None
    return found
