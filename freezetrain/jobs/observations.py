"""What a quickstart shows of the paper's claims, in plain words, also where it shows nothing."""

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any

_NOISE = 0.02  # share of the loss; runs that differ by less are called equal


def _rises(results: Mapping[str, Any], region: str) -> dict[str, float]:
    """Rise of each language's NLL when the region is zeroed, nats per token."""
    ablation = results["ablation"]
    return {
        language: (after["nll"] - ablation["nothing"][language]["nll"]) / after["tokens"]
        for language, after in ablation[region].items()
    }


def gain_and_loss(evaluations: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(target gain, mean held-out loss) of each evaluation, nats per byte, in order of steps."""
    return [(e["forgetting"]["target_gain"], e["forgetting"]["mean"]) for e in evaluations]


def loss_at_gain(evaluations: list[dict[str, Any]], gain: float) -> float | None:
    """Mean held-out loss of a run when it had gained so much, linear between its evaluations.

    None if it never gained so much.
    """
    course = gain_and_loss(evaluations)
    for (gain_before, loss_before), (gain_after, loss_after) in pairwise(course):
        if gain_before <= gain <= gain_after and gain_after > gain_before:
            share = (gain - gain_before) / (gain_after - gain_before)
            return loss_before + share * (loss_after - loss_before)
    return None


def _against(rises: Mapping[str, float], control: Mapping[str, float]) -> str:
    higher = sum(rises[language] > control[language] for language in rises)
    return (
        f"mean rise {fmean(rises.values()):+.3f} against {fmean(control.values()):+.3f} nats per "
        f"token, higher in {higher} of {len(rises)} languages"
    )


def observe(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Claim, whether it holds here, and what was seen; for the report and the terminal."""
    core, random, bottom = (_rises(results, name) for name in ("core", "random", "bottom"))
    plain = results["runs"]["plain"]
    frozen = {name: run for name, run in results["runs"].items() if name != "plain"}
    moved = sum(run["verify"]["moved"] for run in frozen.values())
    checked = sum(run["verify"]["checked"] for run in frozen.values())
    observations = [
        {
            "claim": "Zeroing the core region hurts every language more than a random region",
            "holds": all(core[language] > random[language] for language in core),
            "seen": _against(core, random),
        },
        {
            "claim": "Zeroing the lowest scores does less harm than zeroing the core",
            "holds": all(core[language] > bottom[language] for language in core),
            "seen": _against(core, bottom),
        },
        {
            "claim": "Frozen entries stayed bit-identical through training",
            "holds": moved == 0,
            "seen": (
                f"{moved:,} of {checked:,} moved in {len(frozen)} runs; in plain training "
                f"{plain['verify']['moved']:,} of the core's {plain['verify']['checked']:,} did"
            ),
        },
        *(
            _forgetting(name.removesuffix(" frozen"), run["evaluations"], plain["evaluations"])
            for name, run in frozen.items()
        ),
    ]
    return observations


def _forgetting(
    what: str, frozen: list[dict[str, Any]], plain: list[dict[str, Any]]
) -> dict[str, Any]:
    """Compared at equal target gain, since learning less of the target forgets less anyway.

    The gain is the most that both runs reach; each run counts when it first reaches it.
    """
    claim = f"Freezing the {what} reduces forgetting at equal target gain"
    gain = min(max(gain for gain, _ in gain_and_loss(run)) for run in (frozen, plain))
    with_freeze, without = loss_at_gain(frozen, gain), loss_at_gain(plain, gain)
    if gain <= 0 or with_freeze is None or without is None:
        return {"claim": claim, "holds": False, "seen": "the target was not learnt"}
    change = (with_freeze - without) / abs(without) if without else 0.0
    seen = (
        f"at a gain of {gain:.3f} nats per byte the held-out languages had lost "
        f"{with_freeze:+.4f} on average, {without:+.4f} in plain training ({change:+.1%}); "
        "one seed"
    )
    return {"claim": claim, "holds": change < -_NOISE, "seen": seen}
