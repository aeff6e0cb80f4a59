"""Free memory goes back to the system after each block's backward pass."""

import pytest
import torch

from freezetrain.training import heap
from freezetrain.training.heap import given_back


@pytest.fixture
def trims(monkeypatch):
    asked = []

    def trim(left):
        asked.append(left)
        return 1  # as the C library's does

    monkeypatch.setattr(heap, "_trim", lambda: trim)
    return asked


def backward(model):
    ids = torch.arange(8)[None]
    model(ids, labels=ids).loss.backward()


def test_once_for_each_block_while_it_lasts(make_model, trims):
    model = make_model()
    model.requires_grad_(True)
    with given_back(model):
        backward(model)
        assert trims == [0, 0, 0], "the head, and two blocks"
        backward(model)
    backward(model)
    assert len(trims) == 6


def test_blocks_without_trained_parameters_and_another_library(make_model, trims, monkeypatch):
    model = make_model()
    model.model.layers[0].requires_grad_(False)
    with given_back(model):
        backward(model)
    assert len(trims) == 2, "the head, and one block"
    monkeypatch.setattr(heap, "_trim", lambda: None)
    with given_back(model):
        backward(model)
