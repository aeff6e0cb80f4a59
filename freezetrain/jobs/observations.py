"""What a quickstart shows of the paper's claims, in plain words, also where it shows nothing."""

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any


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
    verified = [one["verify"] for run in frozen.values() for one in (run, *run["repeats"])]
    moved = sum(one["moved"] for one in verified)
    checked = sum(one["checked"] for one in verified)
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
                f"{moved:,} of {checked:,} moved in {len(verified)} runs; in plain training "
                f"{plain['verify']['moved']:,} of the core's {plain['verify']['checked']:,} did"
            ),
        },
        *(_forgetting(name.removesuffix(" frozen"), run, plain) for name, run in frozen.items()),
    ]
    return observations


def _forgetting(what: str, frozen: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Compared at equal target gain, seed by seed: learning less of the target forgets less anyway.

    The gain is the most that both runs of a seed reach; each counts when it first reaches it. The
    claim holds if it does for every seed.
    """
    claim = f"Freezing the {what} reduces forgetting at equal target gain"
    pairs = list(zip([frozen, *frozen["repeats"]], [plain, *plain["repeats"]], strict=True))
    compared = [_at_equal_gain(f["evaluations"], p["evaluations"]) for f, p in pairs]
    if any(one is None for one in compared):
        return {"claim": claim, "holds": False, "seen": "the target was not learnt"}
    gains, losses, controls = zip(*[one for one in compared if one is not None], strict=True)
    seen = (
        f"at a gain of {fmean(gains):.3f} nats per byte the held-out languages had lost "
        f"{fmean(losses):+.4f} on average, {fmean(controls):+.4f} in plain training"
    )
    if min(controls) <= 0:
        return {"claim": claim, "holds": False, "seen": f"{seen}: there was none to reduce"}
    changes = [loss / control - 1 for loss, control in zip(losses, controls, strict=True)]
    seen += "; by seed " + ", ".join(f"{change:+.1%}" for change in changes)
    return {"claim": claim, "holds": all(change < 0 for change in changes), "seen": seen}


def _at_equal_gain(
    frozen: list[dict[str, Any]], plain: list[dict[str, Any]]
) -> tuple[float, float, float] | None:
    """The gain that both reach, and the loss of each there; None if nothing was gained."""
    gain = min(max(gain for gain, _ in gain_and_loss(run)) for run in (frozen, plain))
    with_freeze, without = loss_at_gain(frozen, gain), loss_at_gain(plain, gain)
    if gain <= 0 or with_freeze is None or without is None:
        return None
    return gain, with_freeze, without
