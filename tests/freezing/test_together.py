"""What one rank finds, every rank that trains with it is told; the others go on."""

import json

import pytest
from forked_workers import run_worker
from together_worker import WORLD


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, list[str | None]]:
    """Case -> what each rank was told. That it ends at all: no rank waits for another."""
    folder = tmp_path_factory.mktemp("together")
    run_worker("together_worker.py", folder)
    ranks = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD)]
    return {case: [rank[case] for rank in ranks] for case in ranks[0]}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("wrong_base", "UserError: the weights of up.weight at its frozen entries are not those"),
        ("other_regions", "UserError: the ranks were given different regions"),
        ("uneven_batches", "UserError: cannot audit within DistributedDataParallel.join"),
    ],
)
def test_all_ranks_refuse_what_one_does(
    told: dict[str, list[str | None]], case: str, message: str
) -> None:
    assert all(found is not None and found.startswith(message) for found in told[case])


def test_only_the_ranks_of_its_group_hear_of_an_entry_that_moved(
    told: dict[str, list[str | None]],
) -> None:
    first, second, third, fourth = told["two_groups"]
    assert first is second is None
    assert third == fourth
    assert third is not None
    assert third.startswith("CheckError: rank 3, step 2: module.down.bias[1] is frozen")
