"""The tables of benchmarks/README.md are those of the measured figures."""

from benchmarks.__main__ import PARTS, README, RESULTS, readme
from benchmarks.harness import Row, section


def test_readme_shows_the_results():
    assert README.read_text(encoding="utf-8") == readme()
    assert len(PARTS) == sum(line.startswith("*2 cores") for line in readme().splitlines())
    assert (RESULTS / "cpu.json").is_file()


def test_a_section_says_whether_goals_are_met():
    rows = [Row("a", "1.0", "2", True), Row("b", "3.0", "2", False, "slow"), Row("c", "1 s")]
    *_, head, _rule, met, missed, plain, end = section("T", "About.", {"at": 1}, rows).split("\n")
    assert head == "| what | measured | goal |  |"
    assert met == "| a | 1.0 | 2 | met |"
    assert missed == "| b | 3.0 | 2 | missed: slow |"
    assert plain == "| c | 1 s |  |  |"
    assert end == ""
