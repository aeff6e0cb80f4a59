"""What scoring leaves behind (nothing), and what it refuses."""

import gc
import weakref

import pytest
import torch
from scored_models import build, text
from torch import Tensor, nn

from freezetrain.errors import CheckError, UserError
from freezetrain.regions import block_parameters
from freezetrain.scoring import compute_scores
from freezetrain.scoring.compute import Scoring
from freezetrain.scoring.methods import METHODS


def test_at_most_one_gradient_is_alive() -> None:
    model = build("llama")
    alive: list[int] = []

    def count(_: Tensor) -> None:
        alive.append(sum(p.grad is not None for p in model.parameters()))

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(count)
    after_batch: list[int] = []
    batches = text(2, 2)
    compute_scores(model, batches, on_batch=lambda done: (after_batch.append(done), count(None)))
    assert after_batch == [1, 2]
    per_batch = len(block_parameters(model, norms=True))  # none for the embedding and the head
    assert alive == ([1] * per_batch + [0]) * 2


def snapshot(model: nn.Module) -> tuple:
    return (
        [module.training for module in model.modules()],
        [len(module._forward_pre_hooks) for module in model.modules()],
        [(p.requires_grad, id(p.grad), p._version) for p in model.parameters()],
        [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("end", ["fine", "interrupted", "not finite"])
def test_puts_modes_flags_and_gradients_back(method: str, end: str) -> None:
    model = build("gpt2")
    model.transformer.h[0].eval()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
        if index % 2:
            parameter.grad = torch.full_like(parameter, 0.5)
    if end == "not finite":
        with torch.no_grad():
            model.transformer.ln_f.weight.fill_(torch.nan)
    before = snapshot(model)

    def interrupt(done: int) -> None:
        if end == "interrupted" and done == 2:
            raise KeyboardInterrupt

    batches = text(2, 2)
    reads_text = method != "magnitude"
    if end == "interrupted" and reads_text:
        with pytest.raises(KeyboardInterrupt):
            compute_scores(model, batches, method, on_batch=interrupt)
    elif end == "not finite" and reads_text:
        with pytest.raises(CheckError, match=r"loss of batch 0 .* is nan"):
            compute_scores(model, batches, method)
    else:
        compute_scores(model, batches, method, on_batch=interrupt)
    assert snapshot(model) == before
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(bool((gradient == 0.5).all()) for gradient in gradients)


def test_works_where_gradients_are_switched_off() -> None:
    model, batches = build("llama"), text(2)
    expected = compute_scores(model, batches)
    with torch.no_grad():
        scores = compute_scores(model, batches)
        assert not torch.is_grad_enabled()
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "at least one batch of text to score, got none"),
        (
            [torch.zeros(3, 1, dtype=torch.int64)],
            r"int64 \[B, L\].*got torch.int64 \[3, 1\] as batch 0",
        ),
        ([torch.zeros(3, 4)], r"got torch.float32 \[3, 4\]"),
        ([torch.zeros(4, dtype=torch.int64)], r"got torch.int64 \[4\]"),
        ([*text(2), torch.zeros(0, 7, dtype=torch.int64)], r"\[0, 7\] as batch 1"),
    ],
)
def test_refuses_unusable_batches(batches: list[Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compute_scores(build("llama"), batches)


def test_refuses_unknown_methods_and_parameters() -> None:
    model = build("llama")
    with pytest.raises(UserError, match=r"got 'tailor' \(did you mean 'taylor'"):
        compute_scores(model, text(2), "tailor")
    with pytest.raises(UserError, match=r"among taylor, .*, got ''"):
        Scoring(model, [])
    with pytest.raises(UserError, match="at least one parameter"):
        compute_scores(model, text(2), parameters={})
    norm = model.model.norm.weight
    with pytest.raises(UserError, match=r"'model.norm.weigth' is not one \(did you mean"):
        compute_scores(model, text(2), parameters={"model.norm.weigth": norm})
    with pytest.raises(UserError, match=r"'model.norm.weight' is not one"):
        compute_scores(model, text(2), parameters={"model.norm.weight": nn.Parameter(norm.clone())})


def test_wanda_refuses_what_has_no_linear_input() -> None:
    mixtral = build("mixtral")
    names = compute_scores(mixtral, text(2), "wanda").keys()
    assert names == {n for n, _ in mixtral.named_parameters() if "proj.weight" in n}
    router = {"model.layers.0.mlp.gate.weight": mixtral.model.layers[0].mlp.gate.weight}
    with pytest.raises(UserError, match=r"'model.layers.0.mlp.gate.weight' of MixtralTopKRouter"):
        compute_scores(mixtral, text(2), "wanda", parameters=router)
    model = build("gpt2")
    bias = {"transformer.h.0.mlp.c_fc.bias": model.transformer.h[0].mlp.c_fc.bias}
    with pytest.raises(UserError, match=r"'transformer.h.0.mlp.c_fc.bias' of Conv1D"):
        compute_scores(model, text(2), "wanda", parameters=bias)
    model.extra = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"'extra.weight' saw no input"):
        compute_scores(model, text(2), "wanda", parameters={"extra.weight": model.extra.weight})


def test_the_sums_are_freed_as_the_last_scores_are_given() -> None:
    model = build("llama")
    with Scoring(model, ["taylor", "fisher"]) as scoring:
        scoring.add(*text(2))
        held = weakref.WeakSet(
            tensor
            for tensor in gc.get_objects()
            if type(tensor) is Tensor and tensor.dtype == torch.float32 and tensor.ndim == 2
        )
        before = len(held)
        number = sum(len(shape) == 2 for shape in scoring.shapes("fisher").values())
        for _ in scoring.tensors("fisher"):
            pass
        assert len(held) == before
        for _ in scoring.tensors("fisher", last=True):
            pass
        assert len(held) == before - number
        assert len(dict(scoring.tensors("taylor", last=True))) == len(scoring.shapes("taylor"))
