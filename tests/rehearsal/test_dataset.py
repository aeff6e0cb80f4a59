"""Pieces of rehearsal on disk: rows as they were written, batches, what is wrong in a folder."""

import pickle
import shutil

import pytest
import torch

from freezetrain import UserError
from freezetrain.regions import Base
from freezetrain.rehearsal import Rehearsal, batch_kl, collate, full_kl, top_targets
from freezetrain.rehearsal.pieces import Made, Piece, bytes_of_place, piece_file, write_piece

V, K = 40, 6


def make(folder, seed=0, vocabulary=V, pieces=2):
    """Two pieces of two sequences each; the logits that they were made of."""
    base = Base("base", None, "0" * 64)
    made = Made(base, "tokenizer", vocabulary, K, 9, (None, "en"), pieces, {"seed": seed})
    generator = torch.Generator().manual_seed(seed)
    logits = []
    for number in range(pieces):
        logits.append(torch.randn(14, V, generator=generator))
        tokens = torch.randint(V, (14,), generator=generator)
        starts = torch.tensor([0, 9, 14])
        asked, given = torch.tensor([0, 1]), torch.tensor([1, 4])
        write_piece(
            folder,
            number,
            Piece(tokens, starts, asked, given, top_targets(logits[-1], K)),
            made,
        )
    return logits


@pytest.mark.parametrize("vocabulary", [V, 100_000])
def test_rows_are_what_was_written(tmp_path, vocabulary):
    logits = make(tmp_path, vocabulary=vocabulary)
    rehearsal = Rehearsal(tmp_path)
    assert len(rehearsal) == 4
    assert rehearsal.lengths.tolist() == [9, 5, 9, 5]
    assert rehearsal.languages.tolist() == [0, 1, 0, 1]
    assert rehearsal.given.tolist() == [1, 4, 1, 4]
    expected = logits[1][9:].log_softmax(1).topk(K)
    for row in (rehearsal[3], pickle.loads(pickle.dumps(rehearsal))[3]):
        assert torch.equal(row["top_tokens"].long(), expected.indices)
        assert torch.equal(row["top_log_probs"], expected.values.half())
    stored = sum(piece_file(tmp_path, n).stat().st_size for n in range(2))
    assert bytes_of_place(vocabulary, K) * 28 <= stored < bytes_of_place(vocabulary, K) * 28 + 4000
    assert [len(rehearsal[number]["input_ids"]) for number in range(4)] == [9, 5, 9, 5]
    with pytest.raises(IndexError):
        rehearsal[4]


def test_a_batch_of_rehearsed_and_other_rows(tmp_path):
    logits = make(tmp_path)
    rehearsal = Rehearsal(tmp_path)
    batch = collate([rehearsal[1], {"input_ids": torch.arange(7)}, rehearsal[2]])
    assert batch["input_ids"].shape == (3, 9)
    assert batch["attention_mask"].sum(1).tolist() == [5, 7, 9]
    assert batch["labels"][1].tolist() == [0, 1, 2, 3, 4, 5, 6, -100, -100]
    assert (batch["labels"][[0, 2]] == -100).all()
    assert not any(values.is_floating_point() for values in batch.values())  # engines round them
    model = torch.randn(3, 9, V)
    kl = batch_kl(model, batch)
    same = torch.cat([logits[0][9:], logits[1][:9]])
    assert len(kl) == 14
    assert (kl <= full_kl(torch.cat([model[0, :5], model[2]]), same) + 1e-3).all()
    assert batch_kl(torch.stack([logits[1][:9]]), collate([rehearsal[2]])).abs().max() < 1e-5


def test_a_batch_without_rehearsal_has_a_kl_of_zero_with_a_gradient(tmp_path):
    batch = collate([{"input_ids": torch.arange(7)}])
    model = torch.randn(1, 7, V, requires_grad=True)
    total = batch_kl(model, batch).sum()
    total.backward()
    assert total == 0
    assert model.grad is not None
    assert not model.grad.any()


def test_what_is_wrong_in_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing holds no rehearsal"):
        Rehearsal(tmp_path / "nothing")
    make(tmp_path / "good")
    for case in ("missing", "cut", "changed", "other", "swapped"):
        shutil.copytree(tmp_path / "good", tmp_path / case)
    second = {case: piece_file(tmp_path / case, 1) for case in ("missing", "cut", "changed")}
    second["missing"].unlink()
    second["cut"].write_bytes(second["cut"].read_bytes()[:-10])
    data = bytearray(second["changed"].read_bytes())
    data[-3] ^= 1
    second["changed"].write_bytes(data)
    make(tmp_path / "another", seed=1)
    shutil.copy(piece_file(tmp_path / "another", 1), piece_file(tmp_path / "other", 1))
    shutil.copy(piece_file(tmp_path / "good", 0), piece_file(tmp_path / "swapped", 1))
    for case, says in {
        "missing": "00001.safetensors is missing: the rehearsal has 2 pieces",
        "cut": "00001.safetensors",
        "changed": "00001.safetensors is damaged",
        "other": "00001.safetensors belongs to another rehearsal",
        "swapped": "00001.safetensors is damaged",
    }.items():
        with pytest.raises(UserError, match=says):
            Rehearsal(tmp_path / case)
    # Unchecked, what is not read is not compared, and all else is.
    unchecked = Rehearsal(tmp_path / "changed", check=False)
    assert unchecked.digest == Rehearsal(tmp_path / "good").digest
    for case in ("missing", "cut", "other", "swapped"):
        with pytest.raises(UserError, match="00001"):
            Rehearsal(tmp_path / case, check=False)


def test_another_base_or_tokenizer(tmp_path):
    make(tmp_path)
    rehearsal = Rehearsal(tmp_path)
    rehearsal.require_base("0" * 64, "tokenizer")
    with pytest.raises(UserError, match="another model, base with the fingerprint 000000000000"):
        rehearsal.require_base("1" * 64, None)
    with pytest.raises(UserError, match="another tokenizer than that of mine"):
        rehearsal.require_base("0" * 64, "other", "mine")
