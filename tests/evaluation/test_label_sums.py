import sys

import pytest
import torch

from freezetrain.evaluation import label_sums
from freezetrain.nll import NO_LABEL


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
