"""`freezetrain rehearse`: on two ranks as on one, killed and repeated, of texts, refusals."""

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from forked_ranks import RanksError, run_ranks
from verbs import freezetrain, results

from freezetrain.data.packing import Drawn
from freezetrain.data.texts import read_languages
from freezetrain.data.tokens import tokenize, tokenizer_digest
from freezetrain.files import require_space
from freezetrain.models import load_model
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions.base import base_of
from freezetrain.rehearsal import Rehearsal
from freezetrain.sampling import rehearse


@pytest.fixture(scope="module")
def words(model_folder) -> list[str]:
    """A rehearsal of 26 sequences in 5 pieces, the last of each kind smaller."""
    told = {"--model": model_folder, "--languages": "[zh,en]", "--from_bos": 0.4, "--k": 5}
    told |= {"--sequences": 26, "--sequence_length": 24, "--batch": 6, "--seed": 3, "--workers": 1}
    return ["rehearse", *(str(word) for pair in told.items() for word in pair)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, words) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "alone"
    assert freezetrain(*words, "--out", folder) == 0
    return folder


def pieces(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "pieces").iterdir())}


def work(rank: int, world: int, words: list[str], fault: str | None) -> int:
    """A rank of the verb; its exit status. ``fault``: what goes wrong on it, or None."""
    write = rehearse.write_piece

    def killed(folder: Path, number: int, *rest):
        if number >= 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(folder, number, *rest)

    def full(folder: Path, number: int, *rest):
        if number == 1:
            raise OSError(28, "No space left on device")
        return write(folder, number, *rest)

    rehearse.write_piece = {"kill": killed, "full": full, None: write}[fault]
    return freezetrain(*words)


def test_rows_begin_as_asked_and_hold_the_bases_distribution(alone, model_folder, tokenizer):
    rehearsal = Rehearsal(alone)
    made = rehearsal.made
    assert len(rehearsal) == 26
    assert (made.languages, made.pieces, made.k) == ((None, "zh", "en"), 5, 5)
    model = load_model(ModelSource(str(model_folder)))
    rehearsal.require_base(base_of(model).fingerprint, tokenizer_digest(tokenizer))
    counts = {language: (rehearsal.languages == language).sum() for language in range(3)}
    assert counts == {0: 10, 1: 8, 2: 8}
    begun = {
        number: [
            [tokenizer.bos_token_id, *tokenizer.encode(sentence)[:8]]
            for text in read_languages(TextSource(), [name])[name].train
            for line in text.splitlines()
            for sentence in re.split(r"(?<=[.。])\s*", line)
        ]
        for number, name in ((1, "zh"), (2, "en"))
    }
    begun[0] = [[tokenizer.bos_token_id]]
    lengths = set()
    for number in range(len(rehearsal)):
        row, language = rehearsal[number], rehearsal.languages[number]
        ids = row["input_ids"]
        given = rehearsal.given[number]
        assert given == (1 if language == 0 else 9)
        assert ids[:given].tolist() in begun[language]
        assert given < len(ids) <= 24
        assert len(ids) == 24 or ids[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in ids[given:-1]
        lengths.add(len(ids))
        with torch.no_grad():
            logs = model(ids[None]).logits[0].log_softmax(1)
        best = logs.topk(5)
        assert torch.equal(row["top_tokens"].long(), best.indices)
        torch.testing.assert_close(row["top_log_probs"].float(), best.values, rtol=1e-3, atol=1e-3)
    assert rehearsal.languages[:6].tolist() == [1, 2, 1, 2, 1, 2]  # they take turns
    firsts = {tuple(rehearsal[n]["input_ids"].tolist()) for n in range(len(rehearsal))}
    assert len(firsts) == 26  # each piece has a seed of its own
    prompts = {tuple(rehearsal[n]["input_ids"][:9].tolist()) for n in range(26)}
    assert len([ids for ids in prompts if [*ids] in begun[1] + begun[2]]) == 16


def test_results_count_what_the_pieces_hold(alone):
    rehearsal, found = Rehearsal(alone), results(alone)
    assert found["digest"] == rehearsal.digest
    assert found["bytes"] == sum(map(len, pieces(alone).values()))
    assert [of["language"] for of in found["rehearsed"]] == [None, "zh", "en"]
    for number, of in enumerate(found["rehearsed"]):
        own = (rehearsal.languages == number).nonzero()[0].tolist()
        rows = [rehearsal[place] for place in own]
        assert of["sequences"] == len(own)
        assert of["tokens"] == sum(len(row["input_ids"]) for row in rows)
        assert of["drawn"] == of["tokens"] - int(rehearsal.given[own].sum())
        assert of["ended"] == int((rehearsal.lengths[own] < 24).sum())
        mass = torch.cat([1 - row["rest_log_prob"].float().exp() for row in rows]).mean()
        assert of["top_k_mass"] == pytest.approx(float(mass), abs=1e-3)
        assert of["drawn_nll"] == pytest.approx(of["drawn_entropy"], abs=0.5)
        assert len(of["examples"]) == 3


def test_two_ranks_draw_what_one_process_draws(alone, words, tmp_path):
    assert run_ranks(work, [*words, "--out", str(tmp_path / "two")], None) == [0, 0]
    assert pieces(tmp_path / "two") == pieces(alone)
    assert results(tmp_path / "two") == results(alone)


def test_killed_in_mid_draw_and_repeated(alone, words, tmp_path, capsys):
    folder = tmp_path / "killed"
    with pytest.raises(RanksError):
        run_ranks(work, [*words, "--out", str(folder)], "kill", world=1)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "pieces").iterdir()}
    assert sorted(before) == ["00000.safetensors", "00001.safetensors"]
    (folder / "pieces" / ".00002.safetensors.x.unfinished").mkdir()
    assert freezetrain(*words, "--seed", "4", "--out", folder) == 2
    assert "another run, with another seed" in capsys.readouterr().err
    assert freezetrain(*words, "--out", folder) == 0
    assert pieces(folder) == pieces(alone)
    for name, time in before.items():
        assert (folder / "pieces" / name).stat().st_mtime_ns == time


def test_no_rank_waits_for_one_that_cannot_write(words, tmp_path):
    logs = tmp_path / "logs"
    whole = [*words, "--out", str(tmp_path / "full")]
    assert run_ranks(work, whole, "full", logs=logs) == [2, 2]
    assert all("No space left" in (logs / f"{rank}.err").read_text() for rank in (0, 1))
    assert list(pieces(tmp_path / "full")) == ["00000.safetensors"]


def test_pieces_of_another_model_and_damaged_ones_are_refused(
    alone, words, model_folder, tmp_path, make_model, capsys
):
    folder, model = tmp_path / "again", tmp_path / "model"
    shutil.copytree(model_folder, model)
    words = [str(model) if word == str(model_folder) else word for word in words]
    assert freezetrain(*words, "--out", folder) == 0
    lost = folder / "pieces" / "00003.safetensors"
    whole = lost.read_bytes()

    def refused() -> str:
        (folder / "results.json").unlink(missing_ok=True)
        before = pieces(folder)
        assert freezetrain(*words, "--out", folder) == 2
        assert pieces(folder) == before
        return capsys.readouterr().err

    lost.write_bytes(whole[:-40] + bytes(40))
    assert f"{lost} is damaged" in refused()
    lost.unlink()
    make_model(8).save_pretrained(model)
    assert "made by an earlier start with another base: the model" in refused()


def test_texts_give_their_own_tokens_and_the_bases_distribution(
    model_folder, tokenizer, text_folder, tmp_path
):
    told = ["--model", model_folder, "--texts", text_folder, "--languages", "[es,zh]", "--k", 400]
    told += ["--sequences", 9, "--sequence_length", 32, "--batch", 4, "--seed", 2, "--workers", 1]
    assert freezetrain("rehearse", *told, "--out", tmp_path / "real") == 0
    rehearsal = Rehearsal(tmp_path / "real")
    assert rehearsal.made.languages == ("es", "zh")
    expected = {}
    for name, count in (("es", 5), ("zh", 4)):
        store = tokenize(TextSource(folder=str(text_folder)), name, tokenizer, workers=1)
        (rows,) = Drawn(store, 32, count, seed=2).batches(100)
        expected[name] = rows.tolist()
    found = [rehearsal[number]["input_ids"].tolist() for number in range(9)]
    assert found[0::2] == expected["es"]
    assert found[1::2] == expected["zh"]
    model = load_model(ModelSource(str(model_folder)))
    row = rehearsal[3]
    with torch.no_grad():
        logs = model(row["input_ids"][None]).logits[0].log_softmax(1)
    stored = torch.empty(32, 400).scatter(1, row["top_tokens"].long(), row["top_log_probs"].float())
    torch.testing.assert_close(stored, logs, rtol=1e-3, atol=1e-3)
    assert bool((row["rest_log_prob"] == -torch.inf).all())
    of = results(tmp_path / "real")["rehearsed"][0]
    assert (of["drawn"], of["drawn_nll"], of["tokens"]) == (0, None, 160)


def test_a_tokenizer_without_bos_begins_with_eos_and_one_without_both_with_prompts(
    model_folder, tmp_path, tokenizer, capsys
):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    words = ["rehearse", "--model", folder, "--languages", "[en]", "--k", 3, "--sequences", 6]
    words += ["--sequence_length", 12, "--prompt_tokens", 4]
    import json

    def without(*names: str) -> None:
        for file in ("tokenizer_config.json", "special_tokens_map.json"):
            if (folder / file).is_file():
                told = json.loads((folder / file).read_text())
                (folder / file).write_text(
                    json.dumps({k: v for k, v in told.items() if k not in names})
                )

    without("bos_token")
    assert freezetrain(*words, "--out", tmp_path / "eos") == 0
    rehearsal = Rehearsal(tmp_path / "eos")
    assert {int(rehearsal[n]["input_ids"][0]) for n in range(6)} == {tokenizer.eos_token_id}
    without("bos_token", "eos_token")
    assert freezetrain(*words, "--out", tmp_path / "neither") == 2
    assert "neither BOS nor EOS" in capsys.readouterr().err
    assert not (tmp_path / "neither").exists()
    assert freezetrain(*words, "--from_bos", 0, "--out", tmp_path / "prompted") == 0
    assert Rehearsal(tmp_path / "prompted").given.tolist() == [4] * 6


def test_no_language_draws_from_bos_alone(model_folder, tmp_path):
    told = ["--model", model_folder, "--k", 3, "--sequences", 3, "--sequence_length", 8]
    assert freezetrain("rehearse", *told, "--out", tmp_path / "free") == 0
    assert Rehearsal(tmp_path / "free").made.languages == (None,)


BAD = {
    "--k 401": "k is 401 and the model has 400 tokens; use 400 or less",
    "--k 0": "k must be 1 or more",
    "--temperature -1": "temperature must be a number above 0",
    "--from_bos 1.5": "from_bos must be in [0, 1]",
    "--sequence_length 129": "sequence_length is 129 tokens and the model was built for 128",
    "--languages [zh,eng]": "no texts for language 'eng'",
    "--prompt_tokens 23": "prompt_tokens must be at most 22",
    "--sequences 2": "sequences must be more, or from_bos less: 1 begin with prompts",
    "--languages []": "from_bos must be left out, or 1, where no languages are given",
    "--texts {here}": "prompts must be left out where texts are given, of which nothing",
    "--engine.kind fsdp2": "engine.kind must be auto or ddp",
    "--prompts {here}": "no training document of language 'en' has 8 tokens to begin",
    "--batch 0": "batch must be 1 or more",
}


@pytest.mark.parametrize("options", BAD)
def test_what_cannot_be_drawn_is_refused_before_anything_is(words, tmp_path, options, capsys):
    here = tmp_path / "texts"
    here.mkdir()
    (here / "zh.txt").write_text("一切人生而自由，在尊严和权利上一律平等。")
    (here / "en.txt").write_text("No.\n\nYes.")
    more = options.format(here=here).split()
    assert freezetrain(*words, *more, "--prompts.test_one_in", 0, "--out", tmp_path / "out") == 2
    assert BAD[options] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_disk_too_small_is_refused_before_anything_is_drawn(words, tmp_path, monkeypatch, capsys):
    needed = 26 * 24 * (2 + 5 * 2 + 6 * 2)  # a token, 5 tokens, 6 log-probabilities, 2 bytes each

    def with_little(folder, size, what):
        assert size == needed
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
        require_space(folder, size, what)

    monkeypatch.setattr(rehearse, "require_space", with_little)
    assert freezetrain(*words, "--out", tmp_path / "out") == 2
    assert "the sequences may take 15 KB" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
