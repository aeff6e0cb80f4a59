"""The benchmark of starting: commands run as they are given, and verdicts follow from figures."""

from pathlib import Path

import pytest

from benchmarks import startup


def test_only_some_are_timed() -> None:
    found = startup.measured(2, (startup.PLAIN,))
    assert list(found["seconds"]) == list(found["spread"]) == [startup.PLAIN]
    assert len(found["seconds"][startup.PLAIN]) == 2


def test_a_command_that_fails_is_an_error_and_no_time(monkeypatch) -> None:
    monkeypatch.setattr(
        startup, "commands", lambda *_: {startup.PLAIN: ["-c", "raise SystemExit(3)"]}
    )
    with pytest.raises(startup.subprocess.CalledProcessError):
        startup.measured(2)


def test_commands_are_named_as_they_are_given() -> None:
    commands = startup.commands(Path("region.safetensors"), Path("out"))
    for name, words in commands.items():
        if name.startswith("freezetrain"):
            assert words[:2] == ["-m", "freezetrain"]
            assert name.split()[1] == words[2]


@pytest.mark.parametrize(("seconds", "met"), [(0.99, True), (1.01, False)])
def test_verdicts(seconds: float, met: bool) -> None:
    figure = dict.fromkeys(("median", "low", "high"), seconds)
    found = {
        "seconds": {startup.PLAIN: [0.1, 0.2, 0.3]},
        "spread": {startup.PLAIN: figure, "freezetrain --help": figure},
    }
    plain, judged = startup.rows(found)
    assert (plain.met, judged.met) == (None, met)
    assert judged.note == ("" if met else "0.20 s of it are Python's own start")


@pytest.mark.parametrize(("more", "met"), [(0.05, True), (0.2, False)])
def test_the_package_is_judged_by_what_it_adds_to_torch(more: float, met: bool) -> None:
    alone = [1.0, 2.0, 9.0]  # one of them was held up, the other two turns too
    seconds = {startup.TORCH: alone, startup.IMPORT: [each + more for each in alone]}
    found = {"seconds": seconds, "spread": {n: startup.spread(own) for n, own in seconds.items()}}
    torch, judged = startup.rows(found)
    assert (torch.met, judged.met) == (None, met)
    assert judged.figure.startswith(f"{more:.3f} (")
