"""`freezetrain train R --dry_run --show N`: sequences as text, with borders no text can imitate."""

import io
import json
import shutil

import pytest
import yaml
from made_rehearsal import rehearse

from freezetrain.cli import main
from freezetrain.data.packing import Packed
from freezetrain.recipe.mapping import build
from freezetrain.recipe.optimization import Optimization
from freezetrain.rehearsal import Rehearsal
from freezetrain.terminal import Terminal
from freezetrain.training.data import TextData, read_data
from freezetrain.training.preview import Part, Shown, preview
from freezetrain.training.recipe import TrainRecipe

NASTY = ("-- a document\n\x1b[2J\u202eright to left\u202c\r\a", "[bold]מימין לשמאל[/bold] :smile:")


@pytest.fixture
def recipe(tmp_path, text_folder, model_folder):
    with (text_folder / "zh.jsonl").open("w") as file:
        file.writelines(json.dumps({"text": text * 3}) + "\n" for text in NASTY)
    return {
        "model": {"path": str(model_folder)},
        "texts": {"folder": str(text_folder), "test_one_in": 0},
        "languages": ["zh"],
        "replay": {"texts": {"folder": str(text_folder)}, "share": 0.2},
        "optimization": {"sequence_length": 64, "micro_batch": 2, "max_steps": 20},
        "watch": {"off": True},
        "cache": str(tmp_path / "cache"),
        "workers": 1,
    }


def show(recipe, count, capsys, *more):
    with open("recipe.yaml", "w") as file:
        yaml.safe_dump(recipe, file)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "recipe.yaml", "--dry_run", "--show", str(count), *more])
    said, complained = capsys.readouterr()
    return said if not stopped.value.code else complained


def test_the_first_of_each_kind_is_shown_and_no_text_can_look_like_a_border(
    recipe, model_folder, tokenizer, tmp_path, capsys
):
    drawn_by = tmp_path / ("a base with a long name " * 4) / "model"
    shutil.copytree(model_folder, drawn_by)
    folder = rehearse(tmp_path / "drawn", drawn_by, [20, 30])
    recipe["rehearse"] = {"folder": str(tmp_path / "drawn"), "share": 0.1}
    said = show(recipe, 8, capsys)
    assert "steps            20, 2,560 tokens" in said
    lines = said.splitlines()
    lines = lines[next(n for n, line in enumerate(lines) if line.startswith("place ")) :]
    heads = []
    for line in lines:
        if line.startswith("place "):
            heads.append(line)
        elif line.startswith("   "):
            heads[-1] += line
    assert len(heads) == 8
    data = read_data(build(TrainRecipe, recipe, ""), tokenizer, rehearsal=Rehearsal(folder))
    few = [shown.heading for shown in preview(data, tokenizer, 3)]
    assert {"".join(head.split()) for head in few} <= {"".join(head.split()) for head in heads}
    for kind in ("trained on", "replayed", "rehearsed"):
        assert [kind in heading for heading in few].count(True) == 1
    marks = {line for line in lines if line.startswith("-- ")}
    assert "-- a document" in marks
    assert "-- a sequence that was drawn" in marks
    assert all(line.startswith(("place ", "      ", "-- ", "| ")) for line in lines)
    assert not [sign for sign in "\x1b\u202e\r\a" if sign in said]
    assert "\\u202eright to left\\u202c\\r\\x07" in said
    assert not (tmp_path / "runs").exists()


def test_parts_are_those_of_a_plain_loop(make_store, tokenizer):
    documents = [[0, *tokenizer(f"no {n} " * n)["input_ids"], 1] for n in range(1, 8)]
    stream = [token for document in documents for token in document]
    data = TextData(
        {"zh": Packed(make_store(documents), 16)},
        Optimization(max_steps=5, sequence_length=16, micro_batch=2),
    )
    shown = preview(data, tokenizer, 1000)
    assert len(shown) == 10
    sequences = data.order.places(0, 10)[1].tolist()
    count = len(data.packed["zh"])
    for place, number in enumerate(sequences):
        heading = f"place {place + 1} of 10: zh, trained on; sequence {number + 1} of {count}"
        assert shown[place].heading == heading
        expected, goes_on = [], stream[number * 16] != 0
        row = (stream + stream)[number * 16 : number * 16 + 16]
        for at, token in enumerate(row):
            begins_again = number * 16 + at == len(stream)
            if begins_again or token == 0 or not expected:
                mark = "goes on from an earlier sequence" if goes_on and at == 0 else "a document"
                mark = "the texts' beginning again: fills the" if begins_again else mark
                expected.append((mark, []))
            expected[-1][1].append(token)
        assert [part.text for part in shown[place].parts] == [
            tokenizer.decode(ids) for _, ids in expected
        ]
        for part, (mark, _) in zip(shown[place].parts, expected, strict=True):
            assert part.mark.startswith(mark)


@pytest.mark.parametrize("masked", [False, True])
def test_rows_of_what_the_base_drew(recipe, tokenizer, model_folder, tmp_path, masked):
    folder = rehearse(tmp_path / "drawn", model_folder, [20, 30, 9])
    drawn = Rehearsal(folder)
    recipe["rehearse"] = {"folder": str(folder), "share": 0.9}
    del recipe["replay"]
    recipe["optimization"]["document_mask"] = masked
    data = read_data(build(TrainRecipe, recipe, ""), tokenizer, rehearsal=drawn)
    rows = [shown for shown in preview(data, tokenizer, 30) if "rehearsed" in shown.heading]
    texts = [tokenizer.decode(sequence["input_ids"].tolist()) for sequence in drawn]
    for row in rows:
        *parts, nothing = row.parts
        assert nothing.mark.endswith("places hold nothing")
        assert {part.text for part in parts} <= set(texts)
        assert masked or len(parts) == 1
    assert {part.text for row in rows for part in row.parts[:-1]} == set(texts)


def test_a_narrow_terminal_keeps_the_bar_and_long_texts_are_shortened():
    shown = Shown("place 1\x1b[0m", [Part("a document", "word " * 1000 + "\n\nend"), Part("", "")])
    screen = Terminal(file=io.StringIO(), force_terminal=True, width=20, color_system=None)
    screen.print(shown)
    lines = screen.file.getvalue().splitlines()
    assert lines[:2] == ["place 1\\x1b[0m", "-- a document"]
    assert all(line.startswith("| ") and len(line) <= 20 for line in lines[2:])
    assert 800 < sum(map(len, lines)) < 1500
    assert "4,205 characters" in " ".join(line[2:] for line in lines)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["--dry_run", "--show", "0"],
            "--show must be 1 or more and stand beside --dry_run, got 0",
        ),
        (["--show", "3"], "--show must be 1 or more and stand beside --dry_run, got 3"),
        (["--dry_run", "--show", "x"], "argument --show: invalid int value: 'x'"),
        (["--dry_run", "--show", "3", "--languages", "[zz]"], "no texts for language 'zz'"),
    ],
)
def test_what_cannot_be_shown(recipe, capsys, words, complaint):
    with open("recipe.yaml", "w") as file:
        yaml.safe_dump(recipe, file)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "recipe.yaml", *words])
    assert stopped.value.code == 2
    assert complaint in capsys.readouterr().err
