"""`freezetrain score`: on two ranks as on one, killed and repeated, snapshots, refusals."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from forked_ranks import RanksError, run_ranks
from verbs import freezetrain, results

from freezetrain.scoring import Scores, compute, select
from freezetrain.scoring.compute import Scoring
from freezetrain.scoring.methods import METHODS

ENGINES = ("ddp", "fsdp2", "zero-3")


@pytest.fixture(scope="module")
def words(tmp_path_factory, make_model, tokenizer) -> list[str]:
    """A run over tensors that two ranks cannot share evenly, all methods but where told others.

    Batches of 3, 3, 1, 3, 3 and 1 sequences: a rank has no row of some.
    """
    folder = tmp_path_factory.mktemp("odd-llama")
    model = make_model(intermediate_size=25, mlp_bias=True, tie_word_embeddings=True)
    with torch.no_grad():  # biases start from 0, where every score would be
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    told = {"--model": folder, "--sequence_length": 24, "--sequences": 14, "--batch": 3}
    told |= {"--snapshots": "[7]", "--workers": 1, "--seed": 5}
    return ["score", *(str(word) for pair in told.items() for word in pair)]


SEVERAL = ["--languages", "[zh,en]", "--methods", json.dumps(METHODS), "--embeddings", "true"]
THREE = ["--languages", "[en,zh,es]"]


def work(rank: int, world: int, words: list[str], fault: str | None) -> int:
    """A rank of the verb; its exit status. ``fault``: what goes wrong, "kill", "full" or "nan"."""
    folder = Path(words[-1])
    compute._TOKENS_OF_A_PASS["cpu"] = 24  # a row at a time, where one process takes three at once
    count_languages(folder.with_name(f"{folder.name}-{rank}-languages"))
    if fault == "kill" and rank == 0:
        kill_in_the_third_language(folder)
    if fault == "full":
        Scores.save = disk_is_full
    if fault == "nan" and rank == 1:
        label_loss = compute.label_loss
        compute.label_loss = lambda *args: label_loss(*args) * float("nan")
    return freezetrain(*words)


def count_languages(file: Path) -> None:
    enter = Scoring.__enter__

    def entered(self: Scoring) -> Scoring:
        with file.open("a") as lines:
            lines.write("begun\n")
        return enter(self)

    Scoring.__enter__ = entered


def kill_in_the_third_language(folder: Path) -> None:
    """In its midst, after its snapshot."""
    add = Scoring.add

    def added(self: Scoring, batch) -> None:
        if len(list(folder.glob("*.safetensors"))) == 2 and self.sequences > 8:
            os.kill(os.getpid(), signal.SIGKILL)
        add(self, batch)

    Scoring.add = added


def disk_is_full(self: Scores, path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, words):
    """Run the verb on two ranks; its folder, beside which is what they said, and exit statuses."""
    folder = tmp_path_factory.mktemp("ranks")

    def run(name: str, *more: str, fault: str | None = None):
        logs = folder / f"{name}-{fault}-logs"
        whole = [*words, *more, "--out", str(folder / name)]
        codes = run_ranks(work, whole, fault, logs=logs)
        return folder / name, codes, [(logs / f"{rank}.err").read_text() for rank in (0, 1)]

    run.folder = folder
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory, words) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    assert freezetrain(*words, *SEVERAL, "--out", folder / "several") == 0
    assert freezetrain(*words, *THREE, "--out", folder / "three") == 0
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


def assert_same_region(one: Scores, other: Scores) -> None:
    """The same entries, but for those whose scores are as good as tied with the last selected."""
    mine, theirs = (select(scores, 0.1, norms=True).masks() for scores in (one, other))
    assert mine.keys() == set(one) - set(one.made.get("embeddings", ()))
    for name in mine:
        score = one[name]
        assert mine[name].sum() == theirs[name].sum()
        unlike = score[mine[name] != theirs[name]]
        last = score[mine[name]].min().expand(len(unlike))
        torch.testing.assert_close(unlike, last, rtol=1e-4, atol=0)


@pytest.mark.parametrize("kind", ENGINES)
def test_two_ranks_score_as_one_process(alone, two_ranks, kind):
    folder, codes, _ = two_ranks(kind, *SEVERAL, "--engine.kind", kind)
    assert codes == [0, 0]
    assert files(folder) == files(alone / "several")
    assert len(files(folder)) == 2 * (5 + 4)  # languages, methods and their snapshots
    for file in files(folder):
        one, two = Scores.load(alone / "several" / file), Scores.load(folder / file)
        assert list(two) == list(one)
        assert two.base == one.base
        for name in one:
            scale = one[name].max().item()
            assert scale > 0
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=2e-6 * scale)
        loss = one.made.pop("loss")
        assert two.made.pop("loss") == (loss and pytest.approx(loss, rel=1e-6))
        assert two.made == one.made
        assert_same_region(one, two)


def test_what_lies_outside_the_blocks_is_scored_where_it_is_asked_for(alone):
    """The head is the embedding: one tensor."""
    outside = {"model.embed_tokens.weight", "model.norm.weight"}
    of_blocks = Scores.load(alone / "three" / "zh.safetensors")
    assert "embeddings" not in of_blocks.made
    for method in METHODS:
        scores = Scores.load(alone / "several" / method / "zh.safetensors")
        outer = set() if method == "wanda" else outside
        assert set(scores.made.get("embeddings", ())) == outer == set(scores) - set(of_blocks)
    taylor = Scores.load(alone / "several" / "taylor" / "zh.safetensors")
    assert all(torch.equal(taylor[name], of_blocks[name]) for name in of_blocks)
    assert select(taylor, 0.1) == select(of_blocks, 0.1)


def test_every_rank_ends_where_nothing_can_be_written(two_ranks):
    folder, codes, said = two_ranks("full", *THREE, fault="full")
    assert codes == [2, 2]
    assert all("No space left on device" in of_rank for of_rank in said)
    assert files(folder) == []
    assert not (folder / "results.json").exists()


def test_every_rank_ends_where_a_loss_of_one_is_not_finite(two_ranks):
    folder, codes, said = two_ranks("nan", *THREE, fault="nan")
    assert codes == [1, 1]
    wrong = "language 'en': the loss of batch 1 (counted from 0) is nan\n"
    assert all(wrong in of_rank for of_rank in said)
    assert files(folder) == []


def test_killed_in_the_third_language_and_repeated(alone, two_ranks):
    with pytest.raises(RanksError):
        two_ranks("again", *THREE, fault="kill")
    again, killed = two_ranks.folder / "again", two_ranks.folder / "as-killed"
    shutil.copytree(again, killed)
    before = files(killed)
    assert two_ranks("again", *THREE)[1] == [0, 0]
    assert before == ["at-7/en.safetensors", "at-7/es.safetensors", "at-7/zh.safetensors",
                      "en.safetensors", "zh.safetensors"]  # fmt: skip
    assert files(again) == files(alone / "three") == sorted([*before, "es.safetensors"])
    # Three languages, and the third once more, on both ranks: its snapshot is made by both.
    begun = [len(again.with_name(f"again-{n}-languages").read_text().split()) for n in (0, 1)]
    assert begun == [4, 4]
    for file in before:
        assert (again / file).stat().st_mtime_ns == (killed / file).stat().st_mtime_ns
        assert (again / file).read_bytes() == (killed / file).read_bytes()
    for file in files(again):
        one, two = Scores.load(alone / "three" / file), Scores.load(again / file)
        for name in one:
            scale = one[name].max().item()
            torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=2e-6 * scale)
    whole, resumed = results(alone / "three")["scores"], results(again)["scores"]
    assert whole.keys() == resumed.keys() == {"en", "zh", "es"}
    for name, facts in resumed.items():
        assert facts["files"] == [f"{name}.safetensors", f"at-7/{name}.safetensors"]
        assert facts["loss"] == pytest.approx(whole[name]["loss"])


def test_a_snapshot_equals_a_run_of_so_many_sequences(alone, words, tmp_path, monkeypatch):
    """And a repeated run clears away what a killed one left unfinished, and no more."""
    words = [*words, "--languages", "[zh]", "--sequences", "7", "--snapshots", "[]"]
    words += ["--embeddings", "true"]
    assert freezetrain(*words, "--out", tmp_path / "seven") == 0
    assert files(tmp_path / "seven") == ["zh.safetensors"]
    expected = Scores.load(tmp_path / "seven" / "zh.safetensors")
    found = Scores.load(alone / "several" / "taylor" / "at-7" / "zh.safetensors")
    assert found.made == expected.made
    assert found.made["sequences"] == 7
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (tmp_path / "seven" / "results.json").unlink()
    (tmp_path / "seven" / ".en.safetensors.x.unfinished").mkdir()
    kept = (tmp_path / "seven" / "zh.safetensors").stat().st_mtime_ns
    monkeypatch.setattr("freezetrain.analysis.score.load_scored", None)  # nothing is left to score
    assert freezetrain(*words, "--out", tmp_path / "seven") == 0
    assert (tmp_path / "seven" / "zh.safetensors").stat().st_mtime_ns == kept
    assert sorted(os.listdir(tmp_path / "seven")) == [
        "recipe.yaml", "results.json", "zh.safetensors",
    ]  # fmt: skip


def test_the_rest_of_the_sequences_is_scored_apart(words, tmp_path):
    """Squared gradients of those drawn first and of the rest sum to those of all."""
    fisher = [*words, "--languages", "[zh]", "--methods", "[fisher]", "--batch", "1"]
    for name, more in {
        "all": ["--sequences", "14", "--snapshots", "[7]"],
        "second": ["--sequences", "7", "--snapshots", "[]", "--first", "7"],
    }.items():
        assert freezetrain(*fisher, *more, "--out", tmp_path / name) == 0
    whole, first, second = (
        Scores.load(tmp_path / file / "zh.safetensors") for file in ("all", "all/at-7", "second")
    )
    for name in whole:
        torch.testing.assert_close(first[name] + second[name], whole[name], rtol=1e-5, atol=1e-12)


def test_magnitude_alone_reads_no_text(words, tmp_path, monkeypatch):
    monkeypatch.setattr("freezetrain.analysis.score.tokenize", None)
    words = [*words, "--methods", "[magnitude]"]
    assert freezetrain(*words, "--languages", "[zh]", "--out", tmp_path / "run") == 0
    assert files(tmp_path / "run") == ["zh.safetensors"]
    said = results(tmp_path / "run")["scores"]["zh"]
    assert (said["sequences"], said["loss"], said["files"]) == (0, None, ["zh.safetensors"])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--languages", "[zh,xx]"], "'xx'"),
        (["--languages", "[zh,zh]"], "languages: expected each name once, got 'zh' twice"),
        (["--methods", "[]"], "methods must be one or more"),
        (["--methods", "[wanda]", "--embeddings", "true"],
         "embeddings must be false: wanda scores the linear layers"),
        (["--snapshots", "[7,7]"], "snapshots must be ascending, from 1 to below sequences, 14"),
        (["--snapshots", "[14]"], "snapshots must be ascending"),
        (["--first", "100000"], "and first leaves out 100000 of them"),
        (["--engine.kind", "zero-2"], "engine.kind must be auto, ddp, fsdp2 or zero-3"),
        (["--engine.kind", "fsdp2", "--engine.devices", "4"], "the 4 devices share the sequences"),
        (["--engine.compile", "true"], "engine.compile must be left out: it is for training"),
        (["--engine.gradient_checkpointing", "true"], "left out: nothing is trained"),
        (["--sequence_length", "200"], "sequence_length is 200 tokens and the model was built for"),
    ],
)  # fmt: skip
def test_refusals(words, tmp_path, capsys, more, said):
    assert freezetrain(*words, "--languages", "[zh]", *more, "--out", tmp_path / "run") == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()
