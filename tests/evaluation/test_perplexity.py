"""The NLL of documents and of labels, against plain loops."""

import math
import sys

import pytest
import torch
from heads import chunks_of
from largest_tensor import Largest
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation import Document, evaluate, evaluate_documents, label_sums
from freezetrain.head.find import find_head
from freezetrain.nll import NO_LABEL

VOCABULARY = 40
LENGTHS = {"en": [2, 17, 3, 31, 9], "de": [24], "sw": [5, 5, 12]}

pytestmark = pytest.mark.filterwarnings("error")


def llama(dropout=0.0):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        attention_dropout=dropout,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5
    )
    return GPT2LMHeadModel(config)  # with dropout, and positions that padding must not shift


def documents(lengths=LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return {
        language: [
            Document(torch.randint(VOCABULARY, (n,), generator=generator).tolist(), 3 * n + 1)
            for n in sizes
        ]
        for language, sizes in lengths.items()
    }


def starts(tokens, max_length, overlap):
    """Of each token, from 1 on, the first id that it is predicted from."""
    first = []
    while len(first) < tokens:
        done = len(first)
        new = min(tokens - done, max_length - overlap + 1 if done else max_length)
        first += [max(0, done + new - max_length)] * new
    return first


def plain_loop(model, texts, max_length, overlap=1):
    """NLL and hits token by token, each from its own forward pass over what stands before it."""
    model.eval()
    nll, correct = 0.0, 0
    with torch.no_grad():
        for document in texts:
            for position, start in enumerate(starts(document.tokens, max_length, overlap), 1):
                context = torch.tensor([document.ids[start:position]])
                log_p = model(input_ids=context).logits[0, -1].double().log_softmax(-1)
                nll -= log_p[document.ids[position]].item()
                correct += int(log_p.argmax() == document.ids[position])
    return nll, correct


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
def test_it_equals_a_plain_loop_over_single_sequences(make, dtype, batch_tokens):
    model, texts = make().to(dtype), documents()
    figures = evaluate(model, texts, max_length=64, batch_tokens=batch_tokens)
    assert list(figures) == list(texts)
    for language, value in figures.items():
        reference, correct = plain_loop(model, texts[language], 64)
        tokens = sum(n - 1 for n in LENGTHS[language])
        size = sum(3 * n + 1 for n in LENGTHS[language])
        assert value.tokens == tokens
        assert value.bytes == size
        assert value.documents == len(LENGTHS[language])
        assert value.correct == correct
        assert value.nll == pytest.approx(reference, rel=1e-6)
        assert value.perplexity == pytest.approx(math.exp(reference / tokens), rel=1e-5)
        assert value.bits_per_byte == pytest.approx(reference / size / math.log(2), rel=1e-6)


@pytest.mark.parametrize(("max_length", "overlap"), [(1, 1), (7, 1), (7, 3), (17, 17), (24, 12)])
def test_long_documents_are_cut_into_windows_that_overlap(max_length, overlap):
    model, texts = llama(), documents()
    options = {"max_length": max_length, "overlap": overlap}
    figures = evaluate(model, texts, batch_tokens=30, **options)
    for language, value in figures.items():
        reference, correct = plain_loop(model, texts[language], **options)
        assert value.tokens == sum(n - 1 for n in LENGTHS[language])
        assert value.bytes == sum(3 * n + 1 for n in LENGTHS[language])
        assert value.nll == pytest.approx(reference, rel=1e-6)
        assert value.correct == correct


def test_no_logits_of_all_places_are_held(monkeypatch):
    chunks_of(3, monkeypatch)
    model, texts = llama(), documents()
    with Largest() as largest:
        figures = evaluate(model, texts, max_length=16, batch_tokens=64)
    monkeypatch.setattr("freezetrain.evaluation.perplexity.find_head", lambda _: None)
    with Largest() as of_all:
        whole = evaluate(model, texts, max_length=16, batch_tokens=64)
    assert largest.values < of_all.values
    for language, value in figures.items():
        assert value.nll == pytest.approx(whole[language].nll, rel=1e-6)
        assert value.correct == whole[language].correct


def test_logits_of_context_alone_are_not_computed():
    model, computed = llama(), []
    assert find_head(model) is not None  # which runs the model by itself, once
    model.lm_head.register_forward_hook(lambda _, given, __: computed.append(given[0].shape[:2]))
    long = documents({"en": [101, 31], "de": [40]})
    evaluate(model, long, max_length=24, overlap=20, batch_tokens=24)
    first, later = [(1, 24)] * 3, [(1, 5)] * (15 + 1 + 3)
    last = [(1, 1)] * 2  # of the 100 and of the 30 tokens one is left
    assert sorted(map(tuple, computed)) == sorted(first + later + last)


def test_each_document_has_its_own_sums_in_its_own_order():
    model, texts = llama(), documents()
    found = evaluate_documents(model, texts, max_length=11, overlap=4, batch_tokens=30)
    for language, sums in found.items():
        for number, document in enumerate(texts[language]):
            nll, correct = plain_loop(model, [document], 11, 4)
            assert sums.nll[number] == pytest.approx(nll, rel=2e-6)
            assert sums.correct[number] == correct
            assert sums.tokens[number] == document.tokens
            assert sums.bytes[number] == document.bytes


class Toy(nn.Module):
    """A causal model of each token alone: no attention mask, fixed logits."""

    def __init__(self, logits):
        super().__init__()
        self.table = nn.Parameter(logits)
        self.shapes = []

    def forward(self, input_ids):
        self.shapes.append(tuple(input_ids.shape))
        return CausalLMOutput(logits=self.table[input_ids])


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    figures = evaluate(Toy(torch.zeros(VOCABULARY, VOCABULARY)), documents(), max_length=10)
    for value in figures.values():
        assert value.perplexity == pytest.approx(VOCABULARY, rel=1e-6)


@pytest.mark.parametrize("budget", [1, 33, 60])
def test_batches_keep_to_the_budget_and_progress_ends_at_the_total(budget):
    model, told = Toy(torch.zeros(VOCABULARY, VOCABULARY)), []
    evaluate(
        model, documents(), max_length=16, batch_tokens=budget, progress=lambda *a: told.append(a)
    )
    assert all(rows * length <= budget or rows == 1 for rows, length in model.shapes)
    total = sum(n - 1 for sizes in LENGTHS.values() for n in sizes)
    assert len(told) == len(model.shapes)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_modes_random_state_and_gradients_are_as_before():
    model = gpt2().train()
    model.transformer.h[0].eval()  # kept in eval mode on purpose
    modes = {name: module.training for name, module in model.named_modules()}
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    state = torch.get_rng_state()
    first = evaluate(model, documents(), max_length=64)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.lm_head.weight.grad, torch.ones_like(model.lm_head.weight))
    assert evaluate(model, documents(), max_length=64) == first, "dropout must be off"


def test_modes_are_put_back_after_an_exception():
    model = gpt2().train()

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, documents(), max_length=64, progress=stop)
    assert all(module.training for module in model.modules())


def test_tensors_that_a_model_keeps_can_be_trained_through():
    """What a forward pass caches must not be an inference tensor."""

    class Caching(Toy):
        cache = None

        def forward(self, input_ids):
            if self.cache is None:
                self.cache = torch.ones(VOCABULARY)
            return CausalLMOutput(logits=self.table[input_ids] * self.cache)

    model = Caching(torch.zeros(VOCABULARY, VOCABULARY))
    evaluate(model, documents(), max_length=64)
    model(torch.tensor([[1, 2]])).logits.sum().backward()
    assert model.table.grad is not None


def test_nothing_at_padded_places_counts():
    class Padding(Toy):
        def forward(self, input_ids, attention_mask):
            logits = self.table[input_ids]
            return CausalLMOutput(
                logits=logits.masked_fill(attention_mask[..., None] == 0, math.nan)
            )

    figures = evaluate(Padding(torch.zeros(VOCABULARY, VOCABULARY)), documents(), max_length=64)
    assert all(value.perplexity == pytest.approx(VOCABULARY) for value in figures.values())


def test_a_loss_that_is_not_finite_names_the_language():
    table = torch.zeros(VOCABULARY, VOCABULARY)
    table[3] = math.nan
    texts = {"en": [Document([1, 2, 1], 3)], "de": [Document([1, 3, 1], 3)]}
    with pytest.raises(CheckError, match="language 'de' is nan"):
        evaluate(Toy(table), texts, max_length=8)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ({}, {}, "got none"),
        ({"en": [Document([1, 2], 2)], "de": []}, {}, "none for 'de'"),
        (documents(), {"max_length": 0}, "got 0 and 4096"),
        (documents(), {"overlap": 0}, "overlap from 1 to max_length, 64 tokens, got 0"),
        (documents(), {"max_length": 9, "overlap": 10}, "max_length, 9 tokens, got 10"),
        (documents(), {"batch_tokens": 0}, "got 64 and 0"),
        (documents(), {"max_length": 65}, "max_length is 65 tokens but the model has 64"),
    ],
)
def test_bad_input_is_refused(texts, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(llama(), texts, **{"max_length": 64, **options})


def plain(logits, labels):
    rows = []
    for row_logits, row in zip(logits, labels, strict=True):
        nll, tokens, correct = 0.0, 0, 0
        for place, label in enumerate(row.tolist()):
            if label == NO_LABEL:
                continue
            nll -= row_logits[place].double().log_softmax(-1)[label].item()
            tokens += 1
            correct += int(
                row_logits[place].float().tolist().index(row_logits[place].max()) == label
            )
        rows.append((nll, tokens, correct))
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("at_once", [1, 7, 100])
def test_it_equals_a_plain_loop(dtype, at_once, monkeypatch):
    monkeypatch.setattr(sys.modules[label_sums.__module__], "_LOGITS", at_once * 11)
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(5, 9, 11, generator=generator)).to(dtype)
    labels = torch.randint(11, (5, 9), generator=generator)
    labels[torch.rand(5, 9, generator=generator) < 0.3] = NO_LABEL
    labels[3] = NO_LABEL
    labels[0, 0] = logits[0, 0].argmax()
    nll, tokens, correct = label_sums(logits, labels)
    expected = plain(logits, labels)
    assert nll.tolist() == pytest.approx([row[0] for row in expected], rel=1e-6)
    assert tokens.tolist() == [row[1] for row in expected]
    assert correct.tolist() == [row[2] for row in expected]
    assert correct.sum() > 0
    assert nll.dtype == torch.float64


def test_what_stands_where_nothing_counts_does_not_matter():
    logits = torch.zeros(1, 3, 4)
    logits[0, 1] = float("nan")
    nll, tokens, correct = label_sums(logits, torch.tensor([[0, NO_LABEL, 3]]))
    assert nll.item() == pytest.approx(2 * torch.tensor(4.0).log().item())
    assert (tokens.item(), correct.item()) == (2, 1)  # of equal logits, the first is ranked first


def test_no_row_and_no_label():
    for rows in (0, 2):
        found = label_sums(torch.zeros(rows, 3, 4), torch.full((rows, 3), NO_LABEL))
        assert [values.tolist() for values in found] == [[0] * rows] * 3
