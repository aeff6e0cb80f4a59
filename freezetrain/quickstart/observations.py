"""What a quickstart shows of the claims of the paper, also where it shows nothing."""

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any

from freezetrain.analysis.figures import rises
from freezetrain.formats import (
    amount,
    brief,
    count,
    counted,
    language_name,
    listed,
    percent,
    quoted,
)


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


def introduction(results: Mapping[str, Any]) -> str:
    """What was done, in two sentences."""
    model, region = results["model"], results["region"]
    built_in = "the small base that comes with freezetrain" if model["built_in"] else model["name"]
    scored = results["score_languages"]
    runs = quoted(list(results["runs"]))
    return (
        f"In a language model of {amount(model['parameters'])} weights ({built_in}), freezetrain "
        f"looked for those that the loss of {counted(len(scored), 'language')} "
        f"({listed([language_name(code) for code in scored])}) depends on most: the top "
        f"{percent(results['settings']['ratio'])} of each weight matrix, "
        f"{count(region['entries'])} weights in all, are called the core region. That region was "
        "set to zero to see what "
        f"{counted(len(results['languages']), 'language')} lose by it, and then the model was "
        f"trained further on {language_name(results['target'])} for "
        f"{counted(results['settings']['max_steps'], 'step')}, once for each of the runs {runs}, "
        f"while all the other languages were watched.{_repeats(results)}"
    )


def _repeats(results: Mapping[str, Any]) -> str:
    repeats = max((len(run.get("repeats", ())) for run in results["runs"].values()), default=0)
    if not repeats:
        return ""
    return (
        f" Each run was repeated with {counted(repeats, 'other data order')}; what follows shows "
        "the first, where nothing else is said."
    )


def ablation_seen(results: Mapping[str, Any]) -> str:
    """Mean, least and largest rise of each zeroed region."""
    parts = []
    for name, by_language in rises(results["ablation"]).items():
        low, high = min(by_language.values()), max(by_language.values())
        parts.append(
            f"{brief(fmean(by_language.values()))} with {name} zeroed "
            f"({brief(low)} to {brief(high)})"
        )
    many = counted(len(results["languages"]), "language")
    return f"The loss of {many} changes on average, in bits per byte, by {listed(parts)}."


def last_forgetting(runs: Mapping[str, Any]) -> dict[str, Any]:
    """Run → what its last evaluation says of forgetting."""
    return {name: run["evaluations"][-1]["forgetting"] for name, run in runs.items()}


def forgetting_seen(results: Mapping[str, Any]) -> str:
    """Mean change of each run; of two runs, for how many languages which ended lower."""
    last = last_forgetting(results["runs"])
    parts = []
    for name, of_run in last.items():
        gain = of_run["target_gain"]
        gained = "" if gain is None else f", that of the target by {brief(0.0 - gain)}"
        parts.append(
            f"In the run “{name}” the mean loss of the held-out languages changed by "
            f"{brief(of_run['mean'])} nats per byte{gained}."
        )
    seen = " ".join(parts)
    if len(last) == 2:
        (first, one), (second, two) = last.items()
        differences = [
            value["delta_nll_per_byte"] - two["languages"][code]["delta_nll_per_byte"]
            for code, value in one["languages"].items()
        ]
        less = sum(difference < 0 for difference in differences)
        more = sum(difference > 0 for difference in differences)
        seen += (
            f" The loss ended lower in the run “{first}” for {less} of "
            f"{counted(len(differences), 'held-out language')}, in the run “{second}” for {more}."
        )
    return seen


def course_seen(results: Mapping[str, Any]) -> str:
    """The held-out language with the largest change at the end of each run."""
    parts = []
    for name, of_run in last_forgetting(results["runs"]).items():
        worst = of_run["worst"]
        parts.append(
            f"{language_name(worst['language'])} ({brief(worst['delta_nll_per_byte'])}) in the "
            f"run “{name}”"
        )
    return f"The held-out language that fared worst, in nats per byte: {listed(parts)}."


def location_seen(results: Mapping[str, Any]) -> str:
    """Mean share in the fullest rows and columns, the fullest matrix, and the random baseline."""
    region, parts = results["region"], []
    for direction in ("rows", "columns"):
        by_matrix: dict[str, list[float]] = {}
        for layer in region[direction].values():
            for matrix, share in layer.items():
                if share is not None:
                    by_matrix.setdefault(matrix, []).append(share)
        if not by_matrix:
            continue
        means = {matrix: fmean(shares) for matrix, shares in by_matrix.items()}
        fullest = max(means, key=means.__getitem__)
        every = [share for shares in by_matrix.values() for share in shares]
        parts.append(
            f"The fullest 5% of {direction} hold {percent(fmean(every))} of a matrix’s region "
            f"entries on average, most in {fullest} ({percent(means[fullest])}); of a random "
            f"region as large, {percent(region['even'][direction])}."
        )
    return " ".join(parts)


def verify_seen(results: Mapping[str, Any]) -> list[str]:
    """What the bit for bit comparison of each run's model with the base counted."""
    seen = []
    for name, run in results["runs"].items():
        if verify := run.get("verify"):
            elsewhere = verify.get("changed_elsewhere")
            changed = "" if elsewhere is None else f"; {count(elsewhere)} other weights changed"
            seen.append(
                f"Run “{name}”: of {count(verify['checked'])} weights of the region, "
                f"{count(verify['moved'])} differ from the base{changed}."
            )
    return seen
