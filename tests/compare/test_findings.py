"""What a comparison found and recommends: verdicts, variants, figures."""

from dataclasses import replace

from made_comparison import VARIANTS, make_compare

from freezetrain.compare.findings import findings, recommendations


def scaled(variant, mean=1.0, worst=1.0):
    """Losses of one variant times a factor each."""

    def change(run):
        if run.variant != variant:
            return run
        return replace(run, mean=mean * run.mean, worst=worst * run.worst)

    return change


def named(line):
    """Variants that a line names, with what stands behind them in the line."""
    return [part.split(" (")[0] for part in line.split(": ", 1)[1].rstrip(".").split("), ")]


def test_variants_by_verdict_the_best_first():
    def fail(run):
        lost = (run.variant, run.seed) == ("random 5%", 1)
        return replace(run, gain=None, mean=None, worst=None, failed="NaN") if lost else run

    results = make_compare(change=fail)
    less, alike, more, unreached, failed = findings(results)
    assert less.startswith("Less loss than plain (4 of 6 variants, 0.2 expected by chance): ")
    expected = ["everything −78%", "replay 5% −56%", "columns + vocabulary −51%", "vocabulary −3"]
    assert [name[: len(e)] for name, e in zip(named(less), expected, strict=True)] == expected
    assert alike.startswith("No difference to plain: core 1% −4% (")
    assert more.startswith("More loss than plain: clamp +56% (")
    assert unreached == "Not compared (a seed without a result): random 5%."
    assert failed.startswith("Failed runs, left out: 3 (random 5%, 0.0003, ")
    none, some, replayed = recommendations(results)
    assert none.startswith("Best without any text of the languages to keep: vocabulary, learning r")
    assert "columns + vocabulary, learning rate 0.00" in some
    assert "everything, learning rate 0.0013; mean loss −78% (−80 to −76%)" in replayed
    assert replayed.endswith("worst language: better.")


def test_less_on_average_and_more_of_the_worst_language():
    results = make_compare(change=scaled("vocabulary", worst=4.0))
    (line,) = (line for line in findings(results) if "more of the worst language" in line)
    assert "vocabulary +1" in line
    assert recommendations(results)[0].endswith("worst language: worse.")


def test_where_nothing_is_better_the_reference_is_recommended():
    results = make_compare({name: VARIANTS[name] for name in ("plain", "clamp", "random 5%")})
    assert findings(results)[0] == (
        "Less loss than plain: 0 of 2 variants, 0.1 expected by chance."
    )
    (line,) = recommendations(results)
    assert "use plain, learning rate 0.001, or a lower one" in line


def test_what_is_as_good_within_noise_is_named():
    made = {name: VARIANTS[name] for name in ("plain", "vocabulary")}
    made["scored"] = (0.69, 0.95, "columns", 0.0, True)
    none, some, replayed = recommendations(make_compare(made))
    assert "not told apart" not in none
    assert "scored, " in some
    assert some.endswith("; not told apart: vocabulary.")
    assert "scored, " in replayed


def test_one_seed_and_what_is_not_reached():
    made = dict(VARIANTS)
    made |= {"weak": (0.9, 0.2, None, 0.0, False), "strong": (0.9, 3.0, None, 0.0, False)}
    results = make_compare(made, seeds=(5,))
    single, weak, strong = findings(results)
    assert single.startswith("One seed, noise not known: everything −7")
    assert weak == "Not compared (a seed gains less; try higher learning rates): weak."
    assert strong == "Not compared (a seed gains more; try lower learning rates): strong."
    assert recommendations(results)[0].startswith("Nothing is recommended: ")


def test_no_gain_in_common():
    results = make_compare(rates=(1e-3,))
    (line,) = findings(results)
    assert line.startswith("Nothing can be compared at equal gain: 'plain' was run at one learning")
    assert recommendations(results) == []


def test_in_nats_where_the_reference_loses_nothing():
    lines = findings(make_compare(change=scaled("plain", mean=0.0)))
    (line,) = (line for line in lines if line.startswith("More loss than plain: "))
    assert "everything +0.0" in line
