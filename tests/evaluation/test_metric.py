"""Metrics against numpy; two processes are in test_distributed.py."""

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from freezetrain.errors import CheckError, UserError
from freezetrain.evaluation import (
    Document,
    DocumentNLL,
    DocumentSums,
    LanguageNLL,
    evaluate,
    evaluate_documents,
    label_sums,
)

# But for Lightning's advice on the loader of one test, and what it calls in torch.
pytestmark = [
    pytest.mark.filterwarnings("error"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


def drawn(count=200, seed=0):
    random = np.random.default_rng(seed)
    tokens = random.integers(1, 1000, size=count)
    return {
        "nll": random.uniform(1e-3, 1e6, size=count),
        "tokens": tokens,
        "correct": random.integers(0, tokens + 1),
        "bytes": random.integers(1, 5000, size=count),
    }


def test_sums_and_standard_errors_over_updates_equal_those_of_the_documents_together():
    values = drawn()
    language = np.random.default_rng(1).integers(0, 3, size=200)
    metric = LanguageNLL(["en", "de", "sw"])
    for part in np.array_split(np.arange(200), 7):
        rows = {name: torch.from_numpy(of[part]) for name, of in values.items()}
        metric.update(torch.from_numpy(language[part]), **rows)
    for index, found in enumerate(metric.figures().values()):
        of = {name: column[language == index] for name, column in values.items()}
        together = DocumentSums(**of).figures()
        assert found.nll == pytest.approx(of["nll"].sum(), rel=1e-12)
        assert found.tokens == of["tokens"].sum()
        assert found.correct == of["correct"].sum()
        assert found.bytes == of["bytes"].sum()
        assert found.documents == (language == index).sum()
        for name in ("nll_per_byte", "nll_per_token", "accuracy"):
            expected = getattr(together.standard_errors, name)
            assert getattr(found.standard_errors, name) == pytest.approx(expected, rel=1e-6), name


def test_counts_past_the_precision_of_floats_are_exact():
    metric = LanguageNLL(["en"])
    for count in (2**53, 1):
        metric.update(*(torch.tensor([value]) for value in (0, 1.0, count, count, count)))
    found = metric.figures()["en"]
    assert (found.tokens, found.bytes, found.correct) == (2**53 + 1,) * 3


def test_a_single_document_has_no_standard_error():
    metric = LanguageNLL(["en"])
    metric.update(*(torch.tensor([value]) for value in (0, 1.0, 3, 1, 9)))
    assert metric.figures()["en"].standard_errors is None


def test_reset_forgets_and_a_language_without_tokens_is_refused():
    metric = LanguageNLL(["en"])
    metric.update(*(torch.tensor([value]) for value in (0, 1.0, 1, 1, 1)))
    metric.reset()
    metric.update(*(torch.zeros(0, dtype=torch.int64) for _ in range(5)))
    with pytest.raises(UserError, match=r"none of 'en' since .* num_sanity_val_steps=0"):
        metric.figures()


@pytest.mark.parametrize("language", [-1, 2])
def test_a_language_that_is_none_is_refused(language):
    row = [torch.tensor([value]) for value in (language, 1.0, 1, 1, 1)]
    with pytest.raises(UserError, match="expected languages from 0 to 1"):
        LanguageNLL(["en", "de"]).update(*row)


def test_a_loss_that_is_not_finite_names_the_language():
    metric = LanguageNLL(["en", "de"])
    metric.update(torch.tensor([0, 1]), torch.tensor([1.0, float("inf")]), *[torch.ones(2)] * 3)
    with pytest.raises(CheckError, match="language 'de' is inf"):
        metric.figures()


def test_windows_of_a_document_add_up_in_any_order():
    texts = {"en": [Document([1, 2, 3], 5), Document([4, 5], 2)], "de": [Document([1, 1, 1, 1], 9)]}
    metric = DocumentNLL(texts)
    metric.update(torch.tensor([2, 0]), torch.tensor([0.5, 1.0]), torch.tensor([1, 0]))
    metric.update(torch.tensor([2, 1, 2]), torch.tensor([0.25, 2.0, 4.0]), torch.tensor([1, 1, 0]))
    found = metric.document_sums()
    assert list(found) == ["en", "de"]
    assert found["en"].to_dict() == {
        "nll": [1.0, 2.0], "tokens": [2, 1], "bytes": [5, 2], "correct": [0, 1]
    }  # fmt: skip
    assert found["de"].to_dict() == {"nll": [4.75], "tokens": [3], "bytes": [9], "correct": [2]}


def test_many_windows_of_a_document_add_up_in_fp64():
    metric = DocumentNLL({"en": [Document([1] * 1001, 9)]})
    for _ in range(1000):
        metric.update(
            torch.tensor([0]), torch.tensor([1e5 + 0.1], dtype=torch.float64), torch.tensor([1])
        )
    assert metric.document_sums()["en"].nll[0] == pytest.approx(1e8 + 100, rel=1e-12)


class Watched(L.LightningModule):
    """A LightningModule that logs the languages of its validation rows, a document each."""

    def __init__(self, vocabulary):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(vocabulary, 8), nn.Linear(8, vocabulary)
        self.watch = LanguageNLL(["en", "de"])
        self.found = None

    def forward(self, input_ids):
        return self.head(self.embed(input_ids).cumsum(1))

    def validation_step(self, batch, batch_idx):
        language, ids, size = batch
        self.watch.update(language, *label_sums(self(ids[:, :-1]), ids[:, 1:]), bytes=size)

    def on_validation_epoch_end(self):
        self.found = self.watch.figures()
        for language, figures in self.found.items():
            self.log(f"validation/{language}/bits_per_byte", figures.bits_per_byte)


class Logits(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, input_ids):
        return CausalLMOutput(logits=self.module(input_ids))


def test_in_a_lightning_module_it_gives_what_evaluate_gives():
    ids = torch.randint(30, (10, 12), generator=torch.Generator().manual_seed(1))
    language, size = torch.tensor([0, 1] * 5), torch.arange(10) + 20
    module = Watched(30)
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_checkpointing=False,
    )  # fmt: skip
    rows = torch.utils.data.TensorDataset(language, ids, size)
    logged = trainer.validate(module, torch.utils.data.DataLoader(rows, 4), verbose=False)[0]
    texts = {
        name: [
            Document(ids[row].tolist(), int(size[row])) for row in range(10) if language[row] == n
        ]
        for n, name in enumerate(("en", "de"))
    }
    expected = evaluate(Logits(module), texts, max_length=16)
    for name, figures in expected.items():
        found = module.found[name]
        assert found.nll == pytest.approx(figures.nll, rel=1e-6)
        assert (found.tokens, found.bytes) == (figures.tokens, figures.bytes)
        assert (found.correct, found.documents) == (figures.correct, figures.documents)
        error = figures.standard_errors.nll_per_byte
        assert found.standard_errors.nll_per_byte == pytest.approx(error, rel=1e-4)
        bits = pytest.approx(figures.bits_per_byte, rel=1e-5)
        assert logged[f"validation/{name}/bits_per_byte"] == bits
    by_document = evaluate_documents(Logits(module), texts, max_length=16)
    assert {name: sums.figures() for name, sums in by_document.items()} == expected
