import copy
import csv
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_runs import make_run

from freezetrain.errors import UserError
from freezetrain.evaluation import DocumentSums, History
from freezetrain.report.comparison import COLUMNS, comparison_rows, to_markdown, write_csv


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    return [make_run("plain"), make_run("core | frozen", factor=0.5)]


def row(rows: list[dict[str, Any]], model: str, language: str) -> dict[str, Any]:
    (found,) = (one for one in rows if (one["model"], one["language"]) == (model, language))
    return found


def test_rows_follow_from_the_sums(runs: list[dict[str, Any]]) -> None:
    rows = comparison_rows(runs)
    assert len(rows) == 2 * (4 + 1)
    assert all(tuple(one) == COLUMNS for one in rows)
    for run in runs:
        first, last = (run["history"]["evaluations"][n]["figures"] for n in (0, -1))
        deltas, relative = [], []
        for code in ("en", "es", "de", "zh"):
            found = row(rows, run["name"], code)
            before, after = (one[code]["nll"] / one[code]["bytes"] for one in (first, last))
            assert found["base_nll_per_byte"] == pytest.approx(before)
            assert found["nll_per_byte"] == pytest.approx(after)
            assert found["delta_nll_per_byte"] == pytest.approx(after - before)
            assert found["relative"] == pytest.approx(after / before - 1)
            ratio = math.exp((last[code]["nll"] - first[code]["nll"]) / first[code]["tokens"])
            assert found["perplexity_ratio"] == pytest.approx(ratio)
            assert found["perplexity"] == pytest.approx(ratio * found["base_perplexity"])
            assert found["interval_high"] - found["interval_low"] == pytest.approx(0.008)
            low, high = found["interval_low"], found["interval_high"]
            assert low < found["delta_nll_per_byte"] < high
            assert found["step"] == 60
            if code != "zh":
                deltas.append(after - before)
                relative.append(after / before - 1)
        mean = row(rows, run["name"], "mean")
        assert mean["delta_nll_per_byte"] == pytest.approx(statistics.fmean(deltas))
        assert mean["relative"] == pytest.approx(statistics.fmean(relative))
        assert (mean["role"], mean["perplexity"]) == ("mean", None)


def test_beyond_noise_is_an_interval_that_leaves_0_out(runs: list[dict[str, Any]]) -> None:
    del runs[1]["history"]["evaluations"][-1]["forgetting"]["languages"]["de"]["interval"]
    rows = comparison_rows(runs)
    found = {code: row(rows, "plain", code)["beyond_noise"] for code in ("en", "es", "de", "zh")}
    assert found == {"en": "improved", "es": "no", "de": "forgotten", "zh": "improved"}
    assert row(rows, "core | frozen", "de")["beyond_noise"] is None


def test_the_model_is_that_of_the_step_the_brake_went_back_to(runs: list[dict[str, Any]]) -> None:
    runs[0]["brake"] = {"model_step": 20, "limits": {}, "measure": "relative"}
    rows = comparison_rows(runs)
    assert row(rows, "plain", "de")["step"] == 20
    third = runs[0]["history"]["evaluations"][2]["figures"]["de"]
    assert row(rows, "plain", "de")["bits_per_byte"] == third["bits_per_byte"]


def test_a_subsample_is_compared_with_the_base_on_the_same_documents() -> None:
    """Base figures of a run's last rows, taken from a real history, against its documents."""

    def documents(nll: list[float]) -> DocumentSums:
        count = np.array([20, 30, 40, 50][: len(nll)])
        return DocumentSums(np.array(nll, dtype=float), count, 3 * count, count // 2)

    base = {"en": documents([40, 66, 92, 100]), "zh": documents([50, 81, 104, 150])}
    some = {"en": documents([41, 70]), "zh": documents([45, 70])}
    history = History("zh")
    history.add(0, base)
    history.add(5, some, chosen={"en": [0, 1], "zh": [0, 1]})
    rows = comparison_rows([{"name": "a", "history": history.to_dict()}])
    for code, nll in (("en", 106.0), ("zh", 131.0)):
        found = row(rows, "a", code)
        assert found["base_nll_per_byte"] == pytest.approx(nll / 150)
        assert found["base_perplexity"] == pytest.approx(math.exp(nll / 50))
        assert found["base_accuracy"] is None
    assert row(rows, "a", "en")["delta_nll_per_byte"] == pytest.approx(5 / 150)


def test_a_target_of_other_tokens_has_no_ratio() -> None:
    run = make_run()
    run["history"]["evaluations"][-1]["figures"]["zh"]["tokens"] += 1
    assert row(comparison_rows([run]), "plain", "zh")["perplexity_ratio"] is None
    assert row(comparison_rows([make_run()]), "plain", "zh")["perplexity_ratio"] is not None


def test_csv_holds_every_number_in_full(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    runs[0]["name"] = 'a, "b"\nc'
    rows = comparison_rows(runs)
    write_csv(rows, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == len(rows)
    for written, expected in zip(read, rows, strict=True):
        for name, value in expected.items():
            if value is None:
                assert written[name] == ""
            elif isinstance(value, str):
                assert written[name] == value
            else:
                assert float(written[name]) == value


def test_csv_that_cannot_be_written(runs: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="can be written to"):
        write_csv(comparison_rows(runs), tmp_path / "file" / "out.csv")


def cells(line: str) -> list[str]:
    assert line.startswith("| ")
    assert line.endswith(" |")
    split = line[2:-2].replace(r"\|", "\0").split(" | ")
    return [cell.replace("\0", "|") for cell in split]


def test_markdown_is_a_table_of_the_rows(runs: list[dict[str, Any]]) -> None:
    rows = comparison_rows(runs)
    table, note = to_markdown(rows).split("\n\n")
    heads, rule, *lines = map(cells, table.split("\n"))
    assert "Relative: Δ as a share" in note
    assert {len(line) for line in lines} == {len(heads)} == {len(rule)}
    assert all(set(cell) <= set(":-") for cell in rule)
    for line, expected in zip(lines, rows, strict=True):
        said = dict(zip(heads, line, strict=True))
        assert said["model"] == expected["model"]
        delta = float(said["Δ nats/byte"].replace("−", "-"))
        assert delta == pytest.approx(expected["delta_nll_per_byte"], abs=6e-5)
        relative = float(said["relative"].rstrip("%").replace("−", "-"))
        assert relative == pytest.approx(100 * expected["relative"], abs=6e-3)
        assert said["beyond noise"] == expected["beyond_noise"]
    assert [line[1] for line in lines[:5]] == [
        "en",
        "es",
        "de",
        "zh (target)",
        "**mean of held-out**",
    ]


def test_markdown_of_one_model_does_not_name_it() -> None:
    rows = comparison_rows([make_run("<script>", target=None)])
    before = copy.deepcopy(rows)
    assert "script" not in to_markdown(rows)
    rows[0]["language"] = "<b>"
    assert "| &lt;b> |" in to_markdown(rows)
    rows[0]["language"] = before[0]["language"]
    assert rows == before
