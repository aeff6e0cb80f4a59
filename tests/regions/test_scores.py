"""Scores against plain loops in fp64, and what scoring leaves behind: nothing."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from freezetrain.errors import CheckError, UserError
from freezetrain.regions.base import Base, fingerprint
from freezetrain.regions.blocks import block_parameters
from freezetrain.regions.score_methods import METHODS
from freezetrain.regions.scores import Scores
from freezetrain.regions.scoring import compute_scores

SIZES = {
    "vocab_size": 40,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**SIZES),
    "mixtral": transformers.MixtralConfig(**SIZES, num_local_experts=3),
    "gpt2": transformers.GPT2Config(  # with dropout, which scoring must switch off
        vocab_size=40, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    ),
}
LINEAR_LAYERS = {"llama": 2 * 7, "gpt2": 2 * 4}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name])
    with torch.no_grad():  # away from the tiny initial values, so that every gradient counts
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.train()


def text(*rows: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(40, (count, 7), generator=generator) for count in rows]


def mean_nll(model: nn.Module, rows: Tensor) -> Tensor:
    """The mean next-token loss, one token at a time."""
    log_probabilities = model(input_ids=rows).logits.log_softmax(-1)
    losses = [
        -log_probabilities[row, place, rows[row, place + 1]]
        for row in range(rows.shape[0])
        for place in range(rows.shape[1] - 1)
    ]
    return torch.stack(losses).mean()


def reference_of(model: nn.Module) -> nn.Module:
    """A copy in fp64 without dropout; experts in a plain loop, as fused kernels know no fp64."""
    model = copy.deepcopy(model).double().eval()
    model.set_experts_implementation("eager")
    return model


def loop_scores(model: nn.Module, batches: list[Tensor], method: str) -> dict[str, Tensor]:
    """The gradient scores of design.md §3, word by word, in fp64."""
    model = reference_of(model)
    totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in batches:
        share = len(batch) / len(batches[0])
        named = dict(model.named_parameters())
        gradients = torch.autograd.grad(mean_nll(model, batch), list(named.values()))
        for (name, weight), gradient in zip(named.items(), gradients, strict=True):
            if method == "taylor":
                totals[name] += share * gradient
            elif method == "taylor-abs":
                totals[name] += share * abs(weight.detach() * gradient)
            else:
                totals[name] += share * gradient**2
    if method == "taylor":
        return {name: abs(p.detach() * totals[name]) for name, p in model.named_parameters()}
    return totals


def assert_scores_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == torch.float32
    assert expected.max() > 0
    scale = float(expected.max())
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=2e-6 * scale)


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


def test_taylor_does_not_depend_on_how_the_text_is_batched() -> None:
    model, rows = build("llama"), torch.cat(text(6))
    together = compute_scores(model, [rows])
    for sizes in ([4, 2], [1] * 6):
        apart = compute_scores(model, rows.split(sizes))
        for name in together:  # in units of the first batch
            assert_scores_close(apart[name] * sizes[0] / 6, together[name].double())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_wanda_equals_weight_times_norm_of_inputs(name: str) -> None:
    model, batches = build(name), text(3, 2)
    reference = reference_of(model)
    inputs: dict[str, list[Tensor]] = {}
    for path, layer in reference.named_modules():
        if path.endswith(("_proj", "c_attn", "c_fc")):
            layer.register_forward_hook(
                lambda _, x, y, path=path: inputs.setdefault(path, []).append(x[0].flatten(0, -2))
            )
    for batch in batches:
        with torch.no_grad():
            reference(input_ids=batch)
    scores = compute_scores(model, batches, "wanda")
    assert set(scores) == {f"{path}.weight" for path in inputs}
    assert len(scores) == LINEAR_LAYERS[name]
    for path, seen in inputs.items():
        norm = torch.linalg.vector_norm(torch.cat(seen), dim=0)
        weight = reference.get_parameter(f"{path}.weight").detach().abs()
        expected = weight * norm[:, None] if name == "gpt2" else weight * norm[None, :]
        assert_scores_close(scores[f"{path}.weight"], expected)


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
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        (gradient,) = torch.autograd.grad(loss, [weight])
        assert gradient.dtype == torch.bfloat16
        total += gradient.float()
    assert list(scores) == [name]
    assert torch.equal(scores[name], (weight.detach().float() * total).abs())


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


def example(batches: float = 1, method: str = "taylor", seed: int = 0, **made: object) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    tensors = {"b": torch.rand(3, 4, generator=generator), "a": torch.rand(5, generator=generator)}
    return Scores(tensors, made={"method": method, "batches": batches, "norms": ["a"], **made})


@pytest.mark.parametrize(
    ("method", "weights"),
    [("taylor", (1, 1 / 4)), ("fisher", (1, 1 / 4)), ("wanda", (1, 1 / 2)), ("magnitude", (1, 1))],
)
def test_sum_weighs_languages_alike(method: str, weights: tuple[float, float]) -> None:
    parts = [example(1, method, 0, language="xx"), example(4, method, 1, language="yy")]
    total = Scores.sum(parts)
    for name in ("b", "a"):
        terms = [
            w * part[name].numpy().astype(float) for w, part in zip(weights, parts, strict=True)
        ]
        np.testing.assert_allclose(total[name].numpy(), sum(terms), rtol=1e-6)
    assert [part["language"] for part in total.made["sum"]] == ["xx", "yy"]
    assert total.made["norms"] == ["a"]


def test_sum_of_twice_the_same_text_is_that_of_once() -> None:
    model, batches = build("llama"), text(2, 2)
    for method in METHODS:
        once = Scores.sum([compute_scores(model, batches, method)])
        twice = Scores.sum([compute_scores(model, batches * 2, method)])
        for name in once:
            assert_scores_close(twice[name], once[name].double())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Scores({"a": torch.rand(5)}, made=example().made), "only some hold 'b'"),
        (
            Scores({"a": torch.rand(5), "b": torch.rand(4, 3)}, made=example().made),
            r"one shape for 'b', got \[3, 4\] and \[4, 3\]",
        ),
        (example(method="fisher"), "of one method to sum, got 'taylor' and 'fisher'"),
        (Scores(dict(example())), "say their method"),
        (example(batches=0), "number of batches"),
        (Scores(dict(example()), Base("x", None, "2"), example().made), "one base model"),
    ],
)
def test_sum_refuses_what_does_not_belong_together(other: Scores, message: str) -> None:
    first = Scores(dict(example()), Base("x", None, "1"), example().made)
    with pytest.raises(UserError, match=message):
        Scores.sum([first, other])
    with pytest.raises(UserError, match="at least one language"):
        Scores.sum([])


def test_save_and_load_bring_everything_back_in_order(tmp_path) -> None:
    path = tmp_path / "xx.safetensors"
    scores = Scores(
        dict(example()), Base("gpt", "main", "f00"), {"method": "taylor", "n": [1, None]}
    )
    scores.save(path)
    loaded = Scores.load(path)
    assert list(loaded) == ["b", "a"]
    assert all(torch.equal(loaded[name], scores[name]) for name in scores)
    assert (loaded.base, loaded.made) == (scores.base, scores.made)
    with pytest.raises(UserError, match="exists"):
        scores.save(path)
    example(seed=3).save(path, overwrite=True)
    assert torch.equal(Scores.load(path)["a"], example(seed=3)["a"])
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(UserError, match="truncated"):
        Scores.load(path)


@pytest.mark.parametrize("bad", [torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf])])
def test_refuses_scores_that_are_not_finite(bad: Tensor) -> None:
    with pytest.raises(UserError, match="NaN or infinity in 'a'"):
        Scores({"a": bad})
    with pytest.raises(UserError, match=r"floating scores of 'a', got torch.int64"):
        Scores({"a": torch.arange(3)})
