"""The benchmark of loading: all ways load the same region, and verdicts follow from figures."""

import pytest
import torch

from benchmarks import loading
from benchmarks.selecting import shapes

SIZES = (32, 48, 16, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading") / "large"
    loading.write(folder, *SIZES)
    return folder


def test_all_ways_load_the_same_region(folder) -> None:
    ways = loading.ways(folder, *SIZES)
    region, resolved = ways["Region.load and resolve"]()
    assert region == ways["Region.load"]()
    masks = ways["dense masks"]()
    assert masks.keys() == region.keys() == shapes(*SIZES).keys()
    assert all(torch.equal(masks[name], mask) for name, mask in region.masks().items())
    assert {found.name: found.entries for found in resolved} == dict(region)
    assert all(found.parameter.is_meta for found in resolved)
    sums = [int(entries.indices().sum()) for entries in region.values()]
    assert sorted(map(int, ways["read the file"]())) == sorted(sums)
    assert int(ways["read one tensor"]()) in sums


def test_tiny_run(monkeypatch) -> None:
    monkeypatch.setattr(loading, "held", lambda *_: {"kept": 1.0, "most": 2.0})
    found = loading.measured(2, *SIZES)
    counts = [int(0.01 * rows * columns + 0.5) for rows, columns in shapes(*SIZES).values()]
    assert (found["entries"], found["parameters"]) == (sum(counts), 14)
    assert found["file_bytes"] > 4 * sum(counts)
    assert set(found["seconds"]) == set(found["ratios"]) == set(found["times_of_reading"])


@pytest.mark.parametrize(("kept", "met"), [(4.04, True), (4.3, False)])
def test_verdicts(kept: float, met: bool) -> None:
    one = dict.fromkeys(("median", "low", "high"), 1.0)
    ways = ("Region.load", "Region.load and resolve", "read the file", "read one tensor")
    found = {
        "weights": 10**8,
        "entries": 10**6,
        "seconds": {way: [0.001, 0.002, 0.003] for way in ways},
        "ratios": {"dense masks": one},
        "memory": {
            "Region.load and resolve": {"kept": kept, "most": 5.0},
            "dense masks": {"kept": 100.0, "most": 101.0},
        },
    }
    lines = loading.rows(found)
    (judged,) = [line for line in lines if line.goal]
    assert judged.met == met
    assert judged.note == ("" if met else "0.3 MB more than the entries take")
    assert lines[-1].figure == "100.0 bytes an entry (100 MB; 101 at most)"
    assert lines[0].figure == "2.0 (1.0 to 3.0) ms"
