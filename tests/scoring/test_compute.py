"""Scores against plain loops in fp64; what scoring leaves behind (nothing), and what it refuses."""

import gc
import weakref
from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from heads import chunks_of
from largest_tensor import Largest
from scored_models import (
    SIZES,
    assert_scores_close,
    build,
    loop_scores,
    mean_nll,
    reference_of,
    text,
)
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from freezetrain.errors import CheckError, UserError
from freezetrain.regions import Base, block_parameters, fingerprint
from freezetrain.regions.blocks import outer_parameters
from freezetrain.scoring import Scores, compute, compute_scores, select
from freezetrain.scoring.compute import Scoring
from freezetrain.scoring.methods import METHODS

LINEAR_LAYERS = {"llama": 2 * 7, "gpt2": 2 * 4}


@pytest.mark.parametrize("method", ["taylor", "taylor-abs", "fisher"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_gradient_scores_equal_a_plain_fp64_loop(name: str, method: str) -> None:
    model, batches = build(name), text(3, 3, 2)
    expected = loop_scores(model, batches, method)
    scores = compute_scores(model, iter(batches), method, language="xx")
    assert set(scores) == set(block_parameters(model, norms=True))
    for parameter, score in scores.items():
        assert_scores_close(score, expected[parameter])
    loss = mean_nll(reference_of(model), torch.cat(batches))
    assert scores.made.pop("loss") == pytest.approx(loss.item(), rel=1e-5)
    norms = set(block_parameters(model, norms=True)) - set(block_parameters(model))
    assert set(scores.made.pop("norms")) == norms
    assert scores.made == {
        "method": method,
        "language": "xx",
        "sequences": 8,
        "tokens": 8 * 6,
        "batches": pytest.approx(8 / 3),
        "transposed": [n for n in scores if name == "gpt2" and ".c_" in n],
    }
    assert scores.base == Base(None, None, fingerprint(model))


@pytest.mark.parametrize("method", ["taylor", "wanda"])
def test_no_logits_of_all_places_are_held(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = build("llama"), text(16)
    whole = batches[0].numel() * model.lm_head.out_features
    expected = compute_scores(model, batches, method)
    chunks_of(3, monkeypatch)
    with Largest() as largest:
        scores = compute_scores(model, batches, method)
    assert largest.values < whole
    for name, score in scores.items():
        torch.testing.assert_close(score, expected[name], rtol=1e-4, atol=1e-7)


def test_taylor_does_not_depend_on_how_the_text_is_batched() -> None:
    model, rows = build("llama"), torch.cat(text(6))
    together = compute_scores(model, [rows])
    for sizes in ([4, 2], [1] * 6):
        apart = compute_scores(model, rows.split(sizes))
        for name in together:  # in units of the first batch
            assert_scores_close(apart[name] * sizes[0] / 6, together[name].double())


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("name", ["llama", "mixtral"])  # not each pass calls each expert
def test_a_batch_in_several_passes_is_one_batch(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = build(name), text(5, 5, 3)
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    monkeypatch.setitem(compute._TOKENS_OF_A_PASS, "cpu", rows * 7 + 6)
    methods = ["taylor", "taylor-abs", "fisher", "wanda"]
    with Scoring(model, methods) as scoring:
        seen.clear()
        for batch in batches:
            scoring.add(batch)
        found = {method: dict(scoring.tensors(method)) for method in methods}
        made = scoring.made("fisher")
    assert seen == ([1] * 13 if rows == 1 else [2, 2, 1, 2, 2, 1, 2, 1])
    for method, expected in loops(model, batches).items():
        for parameter, score in found.get(method, {}).items():
            assert_scores_close(score, expected[parameter])
    loss = mean_nll(reference_of(model), torch.cat(batches))
    assert made["loss"] == pytest.approx(loss.item(), rel=1e-5)


def loop_wanda(model: nn.Module, batches: list[Tensor]) -> dict[str, Tensor]:
    """Weight times the norm of all inputs, of every linear layer, in fp64."""
    reference = reference_of(model)
    transposed = type(reference).__name__.startswith("GPT2")
    inputs: dict[str, list[Tensor]] = {}
    for path, layer in reference.named_modules():
        if path.endswith(("_proj", "c_attn", "c_fc")):
            layer.register_forward_hook(
                lambda _, x, y, path=path: inputs.setdefault(path, []).append(x[0].flatten(0, -2))
            )
    for batch in batches:
        with torch.no_grad():
            reference(input_ids=batch)
    scores = {}
    for path, seen in inputs.items():
        norm = torch.linalg.vector_norm(torch.cat(seen), dim=0)
        weight = reference.get_parameter(f"{path}.weight").detach().abs()
        scores[f"{path}.weight"] = weight * (norm[:, None] if transposed else norm[None, :])
    return scores


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_wanda_equals_weight_times_norm_of_inputs(name: str) -> None:
    model, batches = build(name), text(3, 2)
    scores, expected = compute_scores(model, batches, "wanda"), loop_wanda(model, batches)
    assert set(scores) == set(expected)
    assert len(scores) == LINEAR_LAYERS[name]
    for parameter, score in scores.items():
        assert_scores_close(score, expected[parameter])


def loops(model: nn.Module, batches: list[Tensor]) -> dict[str, dict[str, Tensor]]:
    """Every method's scores, by loops of their own."""
    return {
        **{m: loop_scores(model, batches, m) for m in ("taylor", "taylor-abs", "fisher")},
        "wanda": loop_wanda(model, batches),
        "magnitude": {n: p.detach().double().abs() for n, p in model.named_parameters()},
    }


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # gpt2's head is its embedding
def test_embeddings_head_and_last_norm_too(name: str) -> None:
    model, batches = build(name), text(3, 2)
    expected = loops(model, batches)
    blocks, outer = set(block_parameters(model, norms=True)), set(outer_parameters(model))
    assert blocks | outer == dict(model.named_parameters()).keys()
    assert not blocks & outer
    with Scoring(model, METHODS, embeddings=True) as scoring:
        for batch in batches:
            scoring.add(batch)
        for method in METHODS:
            scores = dict(scoring.tensors(method))
            made = scoring.made(method)
            assert set(made.get("embeddings", ())) == (set() if method == "wanda" else outer)
            assert scores.keys() == expected[method].keys()
            for parameter, score in scores.items():
                assert_scores_close(score, expected[method][parameter])
            selected = select(Scores(scores, made=made), 0.1, norms=True)
            assert set(selected) <= blocks
            if method != "wanda":
                assert set(selected) == blocks


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_all_methods_in_one_pass_and_on_the_way(name: str) -> None:
    model, batches = build(name), text(3, 1, 3, 2)
    losses = [mean_nll(reference_of(model), torch.cat(batches[:n])).item() for n in range(1, 5)]
    kept: dict[int, dict[str, dict[str, Tensor]]] = {}
    with Scoring(model, METHODS) as scoring:
        for number, batch in enumerate(batches, start=1):
            scoring.add(batch)
            if number in (1, 2, 4):
                last = number == len(batches)
                kept[number] = {m: dict(scoring.tensors(m, last)) for m in METHODS}
                made = scoring.made("fisher", "xx")
                assert (made["method"], made["language"]) == ("fisher", "xx")
                assert made["sequences"] == sum(map(len, batches[:number]))
                assert made["batches"] == pytest.approx(made["sequences"] / 3)
                assert made["loss"] == pytest.approx(losses[number - 1], rel=1e-5)
    for number, by_method in kept.items():  # what was given has not changed since
        for method, expected in loops(model, batches[:number]).items():
            shapes = scoring.shapes(method)
            assert list(shapes) == list(by_method[method])
            for parameter, score in by_method[method].items():
                assert_scores_close(score, expected[parameter])
                assert score.shape == shapes[parameter]


def test_magnitude_is_the_same_beside_others_and_says_that_it_read_nothing() -> None:
    with Scoring(build("llama"), ["magnitude", "taylor"]) as scoring:
        assert scoring.reads_text
        scoring.add(*text(2))
        made = scoring.made("magnitude")
    assert (made["sequences"], made["tokens"], made["batches"], made["loss"]) == (0, 0, 1, None)


def test_magnitude_reads_no_text() -> None:
    def nothing() -> Iterator[Tensor]:
        raise AssertionError("text was read")
        yield

    model = build("llama")
    scores = compute_scores(model, nothing(), "magnitude")
    for name, parameter in block_parameters(model, norms=True).items():
        assert torch.equal(scores[name], parameter.detach().abs())
    assert scores.made["tokens"] == 0
    assert scores.made["loss"] is None


def test_16_bit_gradients_are_summed_in_fp32() -> None:
    model, batches = build("llama").bfloat16(), text(2, 2, 2)
    name = "model.layers.1.mlp.up_proj.weight"
    scores = compute_scores(model, batches, parameters={name: model.get_parameter(name)})
    weight, total = model.get_parameter(name), torch.zeros(12, 8)
    for batch in batches:
        logits = model(input_ids=batch).logits[:, :-1].float()
        labels = batch[:, 1:].flatten()
        nll = nn.functional.cross_entropy(logits.flatten(0, 1), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(nll, [weight])
        assert gradient.dtype == torch.bfloat16
        total += gradient.float() * (1 / len(labels))
    assert list(scores) == [name]
    assert torch.equal(scores[name], (weight.detach().float() * total).abs())


def test_small_gradients_are_not_lost_in_float16() -> None:
    """Of many tokens' mean loss by each of many logits, which together pull where all rows do."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 4000}))
    with torch.no_grad():
        model.lm_head.weight.add_(1)
    name = "model.layers.1.mlp.down_proj.weight"
    exact, rounded = (
        compute_scores(each, text(1000), parameters={name: each.get_parameter(name)})[name]
        for each in (model, deepcopy(model).half())
    )
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_sum_of_twice_the_same_text_is_that_of_once() -> None:
    model, batches = build("llama"), text(2, 2)
    for method in METHODS:
        once = Scores.sum([compute_scores(model, batches, method)])
        twice = Scores.sum([compute_scores(model, batches * 2, method)])
        for name in once:
            assert_scores_close(twice[name], once[name].double())


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
