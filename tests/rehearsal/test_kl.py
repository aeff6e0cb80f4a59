"""KL of k tokens and a rest: plain formulas in fp64, the gradient, rounding to 16 bits."""

import pytest
import torch
from torch import Tensor

from freezetrain import UserError
from freezetrain.rehearsal import Targets, full_kl, rehearsal_kl, top_targets

V = 61


def logits(seed: int = 0, places: int = 23, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(places, V, generator=generator, dtype=torch.float64) * scale
    return base, base + torch.randn(places, V, generator=generator, dtype=torch.float64)


def bucket_kl(base: Tensor, model: Tensor, k: int) -> Tensor:
    """Plain: probabilities of the k likeliest, and what they leave of 1."""
    p, q = base.softmax(1), model.softmax(1)
    top = p.topk(k, dim=1).indices
    p_top, q_top = p.gather(1, top), q.gather(1, top)
    p_rest, q_rest = 1 - p_top.sum(1), 1 - q_top.sum(1)
    return (p_top * (p_top / q_top).log()).sum(1) + p_rest * (p_rest / q_rest).log()


@pytest.mark.parametrize("k", [1, 5, V - 1])
def test_kl_and_gradient_are_the_plain_formula(k, monkeypatch):
    for module in ("kl", "targets"):  # several chunks
        monkeypatch.setattr(f"freezetrain.rehearsal.{module}.places_at_once", lambda *_: 4)
    base, model = logits()
    model.requires_grad_()
    kl = rehearsal_kl(model, top_targets(base, k))
    plain = bucket_kl(base, model, k)
    torch.testing.assert_close(kl, plain, rtol=1e-9, atol=1e-12)
    weights = torch.rand(len(kl), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((kl * weights).sum(), model)
    (expected,) = torch.autograd.grad((plain * weights).sum(), model)
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


def test_all_tokens_give_the_kl_over_the_vocabulary():
    base, model = logits()
    model.requires_grad_()
    kl, full = rehearsal_kl(model, top_targets(base, V)), full_kl(model, base)
    torch.testing.assert_close(kl, full, rtol=1e-9, atol=1e-12)
    expected = torch.autograd.grad(full.sum(), model)[0]
    torch.testing.assert_close(torch.autograd.grad(kl.sum(), model)[0], expected)


@pytest.mark.parametrize("k", [1, 4, 16, 40])
def test_what_it_lacks_is_the_rests_mass_times_the_kl_within_it(k):
    base, model = logits(scale=1.0)
    lacks = full_kl(model, base) - rehearsal_kl(model, top_targets(base, k))
    top = base.topk(k, dim=1).indices
    within_base = base.scatter(1, top, -torch.inf).log_softmax(1)
    within_model = model.scatter(1, top, -torch.inf).log_softmax(1)
    mass = base.softmax(1).scatter(1, top, 0).sum(1)
    terms = within_base.exp() * (within_base - within_model).scatter(1, top, 0)
    torch.testing.assert_close(lacks, mass * terms.sum(1), rtol=1e-9, atol=1e-12)
    assert (lacks >= 0).all()


def test_stored_in_16_bits_it_is_near():
    base, model = logits(places=500)
    exact = top_targets(base, 8)
    stored = Targets(exact.tokens, exact.log_probs.half(), exact.rest.half())
    torch.testing.assert_close(stored.probabilities().sum(1), torch.ones(500))
    error = (rehearsal_kl(model, stored) - rehearsal_kl(model, exact)).abs()
    # d KL / d log p is p (log p/q - KL) after normalizing, and log p is off by |log p| / 2**11.
    both = torch.cat([exact.log_probs, exact.rest[:, None]], 1)
    q = model.log_softmax(1)
    rest = q.scatter(1, exact.tokens, -torch.inf).logsumexp(1)
    ratio = both - torch.cat([q.gather(1, exact.tokens), rest[:, None]], 1)
    kl = rehearsal_kl(model, exact)[:, None]
    bound = (both.exp() * (ratio - kl).abs() * both.abs() / 2**11).sum(1)
    assert (error <= bound * 1.1 + 1e-5).all()
    assert error.max() > 0


def test_the_base_itself_has_none_and_no_gradient():
    base, _ = logits()
    own = base.float().requires_grad_()
    kl = rehearsal_kl(own, top_targets(base.float(), 6))
    assert kl.abs().max() < 1e-6
    assert torch.autograd.grad(kl.sum(), own)[0].abs().max() < 1e-6


def test_a_rest_that_is_small_is_not_lost():
    base = torch.zeros(1, V)
    base[0, :3] = 40.0  # the others have e**-40 each
    found = top_targets(base, 3)
    expected = torch.tensor([58.0]).log() - 40 - torch.tensor([3.0]).log()
    torch.testing.assert_close(found.rest, expected)
    model = torch.zeros(1, V).requires_grad_()
    kl = rehearsal_kl(model, found)
    torch.testing.assert_close(kl, torch.tensor([61 / 3]).log())
    assert torch.autograd.grad(kl.sum(), model)[0].isfinite().all()


def test_in_bfloat16_the_kl_is_that_of_the_rounded_logits():
    base, model = logits()
    rounded = model.bfloat16().requires_grad_()
    kl = rehearsal_kl(rounded, top_targets(base, 5))
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, bucket_kl(base, rounded.double(), 5).float())
    assert torch.autograd.grad(kl.sum(), rounded)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("k", [0, V + 1])
def test_k_beyond_the_vocabulary(k):
    with pytest.raises(UserError, match=f"1 to {V}.*got {k}"):
        top_targets(logits()[0], k)


def test_other_places_or_tokens():
    base, model = logits()
    found = top_targets(base, 4)
    with pytest.raises(UserError, match=r"23 places of targets, got \[22, 61\]"):
        rehearsal_kl(model[1:], found)
    with pytest.raises(UserError, match="the targets hold token"):
        rehearsal_kl(model[:, :3], found)
