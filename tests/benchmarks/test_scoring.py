"""The benchmark of scoring: what it times does what it says, and verdicts follow from figures."""

import pytest
import torch

from benchmarks import scoring
from freezetrain.regions import block_parameters

pytestmark = pytest.mark.exhaustive

TINY = scoring.Size(hidden=16, inner=24, layers=2, vocabulary=32, rows=2, tokens=8)


@pytest.fixture(scope="module")
def found():
    return scoring.measured(TINY, "cpu", rounds=3)


def test_the_plain_loop_makes_the_gradients_that_scoring_needs_and_drops_them() -> None:
    plain = scoring.Passes(scoring.build(TINY, "cpu"))
    scored = block_parameters(plain.model, norms=True)
    seen = {}
    for name, parameter in plain.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: seen.update({name: p.grad.clone()})
            )
    batch = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(0))
    plain.add(batch)
    assert seen.keys() == scored.keys()
    assert all(parameter.grad is None for parameter in plain.model.parameters())
    with scoring.Scoring(scoring.build(TINY, "cpu"), ["taylor"]) as ours:
        ours.add(batch)
        scores = dict(ours.tensors("taylor"))
    for name, gradient in seen.items():  # of the sum; scores are of the mean over 2 × 7 tokens
        torch.testing.assert_close(scores[name], (scored[name] * gradient / 14).abs().detach())


def test_tiny_run(found) -> None:
    assert set(found["ratios"]) == {"forward and backward", "taylor", "all methods"}
    assert found["ratios"]["forward and backward"]["median"] == 1
    assert all(len(own) == 3 for own in found["seconds"].values())
    # 4 square matrices, 3 of the MLP and 2 norms in each of 2 blocks.
    assert found["scored"] == 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16)
    assert found["parameters"] == found["scored"] + 2 * 32 * 16 + 16


@pytest.mark.parametrize(("ratio", "met"), [(1.049, True), (1.051, False)])
def test_verdicts(found, ratio: float, met: bool) -> None:
    figure = {"median": ratio, "low": ratio, "high": ratio}
    lines = scoring.rows({**found, "ratios": {"taylor": figure, "all methods": figure}})
    judged = [line for line in lines if line.goal]
    assert [line.met for line in judged] == [met, met]
    assert [bool(line.note) for line in judged] == [not met, not met]
    assert met or judged[0].note.startswith("5.1% more: ")
