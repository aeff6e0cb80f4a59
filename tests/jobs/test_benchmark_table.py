"""Benchmarks as a table for the terminal."""

from rich.console import Console

from freezetrain.measuring.forgetting import benchmark_table
from freezetrain.measuring.harness import Score, compared


def shown(benchmarks) -> str:
    console = Console(record=True, width=160)
    console.print(benchmark_table(benchmarks))
    return console.export_text()


def test_names_are_no_markup():
    scores = {"task[/x]": {"acc": Score(0.5, 0.1, True)}}
    text = shown([compared(scores, name, scores) for name in ("v[b]", "v[/b]")])
    assert all(name in text for name in ("task[/x]", "v[b]", "v[/b]"))


def test_a_score_that_is_no_number_says_so():
    base = {"task": {"f1": Score(0.5, None, True)}}
    text = shown([compared(base, "model", {"task": {"f1": Score(None, None, True)}})])
    assert "no number, drop unknown" in text
