"""Losses in chunks against whole logits of the model's own forward pass, in fp64."""

import pytest
import torch
import torch.nn.functional as F
from heads import HEADS, VOCABULARY, chunks_of, model_with
from largest_tensor import Largest

from freezetrain.head.chunks import chunks_of_logits
from freezetrain.head.find import find_head
from freezetrain.head.inside import hidden_states, inside, joined
from freezetrain.head.loss import LabelLoss, Term, head_loss, label_loss
from freezetrain.nll import NO_LABEL
from freezetrain.rehearsal import full_kl, rehearsal_kl, top_targets
from freezetrain.rehearsal.kl import BucketKL, FullKL

ROWS, LENGTH = 3, 9
PLACES = ROWS * LENGTH


@pytest.fixture(params=[1, 4, 100])
def at_once(request, monkeypatch):
    chunks_of(request.param, monkeypatch)
    return request.param


def text(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids, labels = torch.randint(VOCABULARY, (2, ROWS, LENGTH), generator=generator)
    labels[0, 2:4] = NO_LABEL
    return ids, labels


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def in_chunks(model, ids, labels):
    head = find_head(model)
    with inside(head, lambda hidden: label_loss(hidden, head, labels)) as losses:
        output = model(input_ids=ids, use_cache=False)
    assert output.logits.numel() == 1
    return joined(losses[0], output)


def whole(model, ids, labels):
    logits = model(input_ids=ids, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")


def assert_same(model, mine, theirs, **close):
    torch.testing.assert_close(mine, theirs, **close)
    actual, expected = gradients_of(model, mine * 0.37), gradients_of(model, theirs * 0.37)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, msg=lambda m, n=name: f"{n}: {m}", **close
        )


@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_are_those_of_whole_logits(name, at_once):
    model, (ids, labels) = model_with(name), text()
    mine, theirs = in_chunks(model, ids, labels), whole(model, ids, labels)
    assert_same(model, mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["tied", "bias", "gemma2"])
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06), (torch.float16, 0.01)]
)
def test_to_rounding_in_other_precisions(name, dtype, close, monkeypatch):
    chunks_of(4, monkeypatch)
    model, (ids, labels) = model_with(name, dtype), text()
    mine = in_chunks(model, ids, labels)
    assert mine.dtype == torch.float32
    theirs = whole(model.double(), ids, labels)
    assert mine.item() == pytest.approx(theirs.item(), rel=close)
    expected = gradients_of(model, theirs)
    model.to(dtype)
    for name, gradient in gradients_of(model, in_chunks(model, ids, labels)).items():
        error = (gradient.double() - expected[name]).norm() / expected[name].norm()
        assert gradient.dtype == dtype
        assert error < close, name


def test_autocast_computes_in_the_narrow_type_and_keeps_fp32_gradients(monkeypatch):
    chunks_of(4, monkeypatch)
    model, (ids, labels) = model_with("tied", torch.float32), text()
    with torch.autocast("cpu", torch.bfloat16):
        mine = in_chunks(model, ids, labels)
        theirs = whole(model, ids, labels)
    assert mine.item() == pytest.approx(theirs.item(), rel=1e-3)
    actual, expected = gradients_of(model, mine), gradients_of(model, theirs)
    for name, gradient in actual.items():
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert gradient.dtype == torch.float32
        assert error < 0.03, name


@pytest.mark.parametrize("kept_in", ["targets", "the base"])
@pytest.mark.parametrize("name", ["tied", "bias", "gemma2", "granite"])
def test_rehearsed_places_have_the_kl_of_whole_logits(name, kept_in, at_once):
    model, base, (ids, labels) = model_with(name), model_with(name), text()
    with torch.no_grad():
        for weight in base.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
        said = base(input_ids=ids).logits.flatten(0, 1)
    head, kept = find_head(model), torch.arange(PLACES) % 3 == 0
    compared, places = kept.nonzero()[:, 0], (~kept).nonzero()[:, 0].flip(0)
    if kept_in == "targets":
        targets = top_targets(said[compared], 5)
        kl = BucketKL(targets, VOCABULARY, ids.device)
    else:
        states = hidden_states(find_head(base), lambda: base(input_ids=ids)).flatten(0, 1)
        kl = FullKL(states[compared], find_head(base))
    labelled = LabelLoss(labels.flatten()[places])
    terms, each = [Term(labelled, places), Term(kl, compared)], []

    def compute(hidden):
        total, losses = head_loss(hidden, head, terms)
        each.extend(losses)
        return total

    with inside(head, compute) as losses:
        output = model(input_ids=ids, use_cache=False)
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    nll = F.cross_entropy(logits[places], labels.flatten()[places], reduction="none")
    if kept_in == "targets":
        divergence = rehearsal_kl(logits[compared], targets)
    else:
        divergence = full_kl(logits[compared], said[compared])
    assert divergence.sum() > 0.01
    torch.testing.assert_close(each, [nll.detach(), divergence.detach()], rtol=1e-9, atol=1e-12)
    theirs = nll.sum() + divergence.sum()
    assert_same(model, joined(losses[0], output), theirs, rtol=1e-9, atol=1e-12)


def test_a_place_with_two_losses_has_the_gradient_of_both():
    model, (ids, labels) = model_with("tied"), text()
    head, twice = find_head(model), torch.tensor([3, 3, 20])
    labels = torch.where(labels == NO_LABEL, 0, labels)
    terms = [
        Term(LabelLoss(labels.flatten())),
        Term(LabelLoss(labels.flatten()[twice[1:]]), twice[1:]),
    ]
    with inside(head, lambda hidden: head_loss(hidden, head, terms)[0]) as losses:
        output = model(input_ids=ids, use_cache=False)
    logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
    theirs = F.cross_entropy(logits, labels.flatten(), reduction="sum") + F.cross_entropy(
        logits[twice[1:]], labels.flatten()[twice[1:]], reduction="sum"
    )
    assert_same(model, joined(losses[0], output), theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("frozen", ["lm_head.weight", "model.norm.weight", "everything but"])
def test_what_needs_no_gradient_gets_none(frozen, monkeypatch):
    model, (ids, labels) = model_with("bias"), text()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_((name != frozen) if "." in frozen else name == "lm_head.bias")
    mine, theirs = in_chunks(model, ids, labels), whole(model, ids, labels)
    assert_same(model, mine, theirs, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr("freezetrain.head.loss._Sums._add", None)  # which computes gradients
    with torch.no_grad():
        assert not in_chunks(model, ids, labels).requires_grad


def test_logits_in_chunks_are_the_models(at_once):
    for name in HEADS:
        model, (ids, _) = model_with(name), text()
        hidden = []
        model.get_output_embeddings().register_forward_pre_hook(
            lambda _, given, h=hidden: h.append(given[0])
        )
        head = find_head(model)
        hidden.clear()
        logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        parts = chunks_of_logits(hidden[0].flatten(0, 1), head)
        for part, chunk in parts:
            torch.testing.assert_close(chunk, logits[part], rtol=1e-12, atol=1e-12)


def test_no_labels_at_all_is_a_loss_of_zero():
    model, (ids, labels) = model_with("tied"), text()
    loss = in_chunks(model, ids, torch.full_like(labels, NO_LABEL))
    assert loss == 0
    assert not any(g.any() for g in gradients_of(model, loss).values())


def test_what_stands_at_places_without_a_label_does_not_matter():
    model, (_, labels) = model_with("llama"), text()
    head, states = find_head(model), torch.randn(ROWS, LENGTH, 16, dtype=torch.float64)
    broken = states.clone()
    broken[0, 2:4] = torch.nan  # those of NO_LABEL
    for given in (states, broken):
        given.requires_grad_()
        model.zero_grad()
        loss = label_loss(given, head, labels)
        loss.backward()
    assert loss == label_loss(states.detach(), head, labels)
    assert torch.equal(broken.grad, states.grad)


def test_a_second_backward_says_why_it_cannot_be():
    model, (ids, labels) = model_with("llama"), text()
    loss = in_chunks(model, ids, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="are gone after the first backward"):
        loss.backward()


def test_a_failed_pass_gives_the_layer_its_forward_back():
    model, (ids, _) = model_with("llama"), text()
    head = find_head(model)
    with pytest.raises(KeyError), inside(head, lambda hidden: {}["x"]):
        model(input_ids=ids)
    assert not model.lm_head._forward_hooks
    assert model(input_ids=ids).logits.shape == (ROWS, LENGTH, VOCABULARY)


@pytest.mark.parametrize("name", ["tied", "gemma2"])
def test_no_tensor_is_as_large_as_all_logits(name, monkeypatch):
    chunks_of(5, monkeypatch)
    model, (ids, labels) = model_with(name), text()
    find_head(model)
    with Largest() as largest:
        in_chunks(model, ids, labels).backward()
    assert largest.values < PLACES * VOCABULARY
    with Largest() as largest:
        whole(model, ids, labels).backward()
    assert largest.values >= PLACES * VOCABULARY
