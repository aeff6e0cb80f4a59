import io

import pytest

from freezetrain import log_lines, progress
from freezetrain.how_long import HowLong
from freezetrain.log_lines import LogLines, duration
from freezetrain.tables import Column, Table
from freezetrain.terminal import Terminal


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (44.6, "45 s"), (99, "99 s"), (100, "2 min"), (3570, "1 h 0 min"),
        (3 * 3600 + 20 * 60, "3 h 20 min"), (47.6 * 3600, "47 h 36 min"), (53 * 3600, "2 d 5 h"),
    ],
)  # fmt: skip
def test_a_duration_has_two_units_at_most(seconds, text):
    assert duration(seconds) == text


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_once_a_minute(clock):
    out = io.StringIO()
    lines = LogLines(Terminal(file=out))
    for second in range(200):
        clock[0] = float(second)
        lines.now_and_then(lambda: f"at {clock[0]:.0f}")
    assert [line.split(" ", 1)[1] for line in out.getvalue().splitlines()] == [
        "at 60", "at 120", "at 180",
    ]  # fmt: skip


def test_a_long_job_says_how_far_it_is_where_there_is_no_terminal(clock, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "Terminal", lambda **_: Terminal(file=out))
    with progress.progress_bar("score [bold]") as update:
        update(10, 100)
        clock[0] = 30.0
        update(25, 100, "score de")
        clock[0] = 90.0
        update(55, 100)
    (line,) = out.getvalue().splitlines()
    assert line.endswith(" score de: 55%, 90 s left")  # 45 in 90 s, 45 are left


@pytest.mark.parametrize(
    ("done", "said"), [(2, ["job: about 5 min in all; shorter with less"]), (20, [])]
)
def test_how_long_is_said_once_it_is_measured(clock, done, said):
    lines = []
    how_long = HowLong(lines.append, "less")
    for second, of_100 in enumerate([10, 10, 10, 10, 10, 10, 10 + done, 12 + done, 14 + done]):
        clock[0] = float(second)
        how_long("job", of_100, 110)
    assert lines == said  # 100 are left: 6 s for 2 of them, or for 20


def test_a_bar_says_how_long_beside_the_lines_of_each_minute(clock, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "Terminal", lambda **_: Terminal(file=out))
    with progress.progress_bar("draw", shorter="fewer sequences") as update:
        for second in range(0, 70, 10):
            clock[0] = float(second)
            update(second, 1000, "draw de")
    lines = [line.split(" ", 1)[1] for line in out.getvalue().splitlines()]
    assert lines[0] == "draw: about 17 min in all; shorter with fewer sequences"
    assert len(lines) == 1  # a minute after the last line another comes


def test_nothing_is_broken_at_80_columns_in_a_log(monkeypatch):
    monkeypatch.setattr(Terminal, "_environ", {})
    out = io.StringIO()
    terminal = Terminal(file=out, force_terminal=False)
    terminal.print("word " * 100)
    columns = [Column(f"a figure of number {n}", len, text=True) for n in range(8)]
    terminal.print(Table("wide", columns, ["zh"]))
    terminal.headline("scores [red]")
    lines = out.getvalue().splitlines()
    assert lines[0] == "word " * 100
    assert any(all(f"a figure of number {n}" in line for n in range(8)) for line in lines)
    assert lines[-1] == "-- scores [red]"


def test_columns_of_the_environment_hold(monkeypatch):
    monkeypatch.setattr(Terminal, "_environ", {"COLUMNS": "60"})
    assert Terminal(file=io.StringIO(), force_terminal=False).width == 60
