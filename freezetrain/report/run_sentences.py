"""What runs gained and forgot, in sentences made from the figures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from freezetrain.formats import (
    brief,
    count,
    counted,
    language_name,
    listed,
    quoted,
    signed_percent,
)
from freezetrain.report.comparison import beyond_noise
from freezetrain.report.run import model_evaluation
from freezetrain.report.run_tables import measured

Run = Mapping[str, Any]

_ACTIONS = {
    "warn": "a limit that is exceeded is told, and training goes on",
    "stop": "training ends where a limit is exceeded",
    "roll_back": "training ends where a limit is exceeded, and the model goes back to the last "
    "evaluated step within the limits",
    "select": "training goes on, and the model is that of the evaluated step within the limits at "
    "which the target gained most",
}


def introduction(runs: Sequence[Run]) -> str:
    """What is compared."""
    evaluations = [run["history"]["evaluations"] for run in runs]
    held_out = {code for of_run in evaluations for code in of_run[0]["forgetting"]["languages"]}
    targets = sorted({t for run in runs if (t := run["history"]["target"]) is not None})
    one = len(runs) == 1
    trained = (
        f", trained further on {listed([language_name(t) for t in targets])}," if targets else ""
    )
    gained = " What the loss of the target falls by is gained." if targets else ""
    return (
        f"{counted(len(runs), 'model')}{trained} against {'its' if one else 'their'} base, on "
        f"held-out text of {counted(len(held_out), 'language')} that "
        f"{'was' if len(held_out) == 1 else 'were'} only watched. What the loss of a language "
        f"rises by is forgotten.{gained}"
    )


def seen(run: Run) -> str:
    """Gain, mean, worst, and how many languages differ by more than noise.

    Where the run went back to an earlier step, also what it went back from.
    """
    model, last = model_evaluation(run), run["history"]["evaluations"][-1]
    said = f"{_changes(model['forgetting'])}{_noise(model['forgetting'])}{_average(run)}"
    if model["step"] != last["step"]:
        said = f"the model is that of step {count(model['step'])}: {said}"
        said += f" At step {count(last['step'])}, the last, {_changes(last['forgetting'])}"
    return f"“{run['name']}”: {said}"


def _changes(change: Mapping[str, Any]) -> str:
    worst, target = change["worst"], change["target"]
    gain = change["target_gain"]
    unit = " nats per byte"
    mean = f"of the held-out languages {_moved(change['mean'], unit if gain is None else '')}"
    mean += " on average"
    if change.get("relative_mean") is not None:
        mean += f" ({signed_percent(change['relative_mean'])})"
    if gain is None:
        said = f"the loss {mean}"
    else:
        moved = _moved(0.0 - gain, unit)
        said = f"the loss of {language_name(target)}, the target, {moved}, that {mean}"
    return (
        f"{said}. {language_name(worst['language'])} fared worst "
        f"({brief(worst['delta_nll_per_byte'])})."
    )


def _moved(change: float, unit: str = "") -> str:
    written = brief(change)
    if written[0] not in "+−":
        return "did not change"
    return f"{'fell' if change < 0 else 'rose'} by {written[1:]}{unit}"


def _noise(change: Mapping[str, Any]) -> str:
    languages = change["languages"].values()
    verdicts = Counter(beyond_noise(language.get("interval")) for language in languages)
    known = len(languages) - verdicts[None]
    if not known:
        return " No intervals are known, so that small differences may be noise."
    of = "" if known == len(languages) else f" {counted(known, 'language')} with an interval:"
    return (
        f"{of} {count(verdicts['forgotten'])} of {counted(known, 'language')} "
        f"{'is' if 1 in (known, verdicts['forgotten']) else 'are'} forgotten beyond noise, "
        f"{count(verdicts['improved'])} improved, {count(verdicts['no'])} within noise."
    )


def _average(run: Run) -> str:
    average = run.get("average")
    if not average:
        return ""
    gain = average["target_gain"]
    gained = "" if gain is None else f", that of the target {_moved(0.0 - gain)}"
    return (
        " The exported model is the average of the weights, with which the mean loss of the "
        f"held-out languages {_moved(average['mean'])}{gained}."
    )


def no_plane(runs: Sequence[Run]) -> str:
    """Why there is no plane of gain and loss; empty where there is one."""
    without = [run["name"] for run in runs if run["history"]["target"] is None]
    if not without:
        return ""
    return (
        f"There is no plane of gain against loss: {quoted(without)} "
        f"{'has' if len(without) == 1 else 'have'} no single target language, whose gain it would "
        "show."
    )


def brake_seen(run: Run) -> str:
    """Limits, what is done beyond them, where training ended, and of which step the model is."""
    brake = run["brake"]
    limits = [
        f"{measured(value, brake['measure'])} for {_limited(name)}"
        for name, value in brake["limits"].items()
    ]
    breaches = brake["breaches"]
    if breaches:
        first = breaches[0]
        course = (
            f"A limit was first exceeded at step {count(first['step'])}: {_limited(first['name'])} "
            f"had lost {measured(first['value'], brake['measure'])}."
        )
    else:
        course = "No limit was exceeded."
    if brake["ended_at_step"] is not None:
        course += f" Training ended at step {count(brake['ended_at_step'])}."
    return (
        f"“{run['name']}”: at most {listed(limits)} may be lost; {_action(run)}. "
        f"{course} The model is that of step {count(brake['model_step'])}."
    )


def _action(run: Run) -> str:
    action = run["brake"]["action"]
    if action == "select" and run["history"]["target"] is None:
        return (
            "training goes on, and the model is that of the last evaluated step within the limits"
        )
    return _ACTIONS[action]


def _limited(name: str) -> str:
    of = {"mean": "the held-out languages on average", "worst": "the worst held-out language"}
    return of.get(name) or language_name(name)


def subsampled(run: Run) -> str:
    """That evaluations after the base take some documents only; empty where they take all."""
    evaluations = run["history"]["evaluations"]
    first, last = (
        sum(figures["bytes"] for figures in evaluations[place]["figures"].values())
        for place in (0, -1)
    )
    if first == last:
        return ""
    return (
        f"“{run['name']}”: evaluations after the base take a fixed subsample of {last / first:.0%} "
        "of its text and are compared with the base on the same documents."
    )
