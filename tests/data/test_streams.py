"""Streams against a plain loop over files and tokenizer; blocks read again; what is in memory."""

import json
import multiprocessing
import zlib
from itertools import islice

import datasets
import numpy as np
import pytest

from freezetrain.data import streams as module
from freezetrain.data.order import Mixed, Order, Pool
from freezetrain.data.packing import Packed, SequenceLoader
from freezetrain.data.streamed import Ahead, Streamed, needed_blocks, read_blocks
from freezetrain.data.streams import FileRows, Stream, blocks
from freezetrain.data.texts import read_languages
from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import TextSource

LENGTH, BLOCK = 8, 4


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch):
    """Batches of 3 documents, read in this process."""
    monkeypatch.setattr(module, "AT_ONCE", 3)
    monkeypatch.setattr(Ahead, "apart", False)


def write_texts(folder, language, seed=0, documents=40):
    rng = np.random.default_rng(seed)
    texts = [" ".join(f"w{w}" for w in rng.integers(0, 90, n % 11 + 1)) for n in range(documents)]
    texts[5] = "  "
    (folder / language).mkdir(parents=True)
    for part in range(3):
        rows = [{"meta": {"text": text}, "id": n} for n, text in enumerate(texts) if n % 3 == part]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / language / f"{part}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_texts(tmp_path / "texts", "en")


def source_of(folder, **changes):
    fields = {"folder": str(folder), "streaming": True, "text_field": "meta.text"}
    return TextSource(**{**fields, **changes})


def by_hand(folder, tokenizer, tokens, test_one_in=4):
    """The first ``tokens`` of the stream, and where documents start."""
    ids, starts = [], []
    while len(ids) < tokens:
        for path in sorted((folder / "en").glob("*.jsonl")):
            for line in path.read_text().splitlines():
                text = json.loads(line)["meta"]["text"]
                if text.strip() and zlib.crc32(text.encode()) % test_one_in:
                    starts.append(len(ids))
                    ids += [0, *tokenizer(text, add_special_tokens=False)["input_ids"], 1]
    return ids[:tokens], [start for start in starts if start < tokens]


def test_blocks_are_those_of_a_plain_loop_over_and_over(folder, tokenizer):
    stream = Stream(source_of(folder), "en", tokenizer)
    size, count = LENGTH * BLOCK, 60
    given = list(islice(blocks(stream, LENGTH, BLOCK), count))
    ids, starts = by_hand(folder, tokenizer, size * count + 1)
    assert given[-1].facts["rounds"] >= 2
    for number, block in enumerate(given):
        first = number * size
        assert block.number == number
        assert block.tokens.tolist() == ids[first : first + size + 1]
        inside = [start - first for start in starts if first <= start <= first + size]
        assert block.starts.tolist() == inside


def hub_of(folder, kind):
    """The same texts as a data set in the hub's layout, of several files."""
    for path in sorted((folder / "en").glob("*.jsonl")):
        if kind == "parquet":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            datasets.Dataset.from_list(rows).to_parquet(path.with_suffix(".parquet"), batch_size=5)
            path.unlink()
    header = f'configs:\n- config_name: en\n  data_files: "en/*.{kind}"\n'
    (folder / "README.md").write_text(f"---\n{header}---\n")
    return TextSource(hub=str(folder), streaming=True, text_field="meta.text")


@pytest.mark.parametrize(
    "kind", ["files", "parquet", pytest.param("jsonl", marks=pytest.mark.exhaustive)]
)
def test_each_block_is_read_again_from_where_it_says(folder, tokenizer, kind):
    expected = list(islice(blocks(Stream(source_of(folder), "en", tokenizer), LENGTH, BLOCK), 45))
    source = source_of(folder) if kind == "files" else hub_of(folder, kind)
    given = list(islice(blocks(Stream(source, "en", tokenizer), LENGTH, BLOCK), 45))
    assert given[-1].facts["rounds"] >= 1
    for whole, block in zip(expected, given, strict=True):
        assert (block.tokens == whole.tokens).all()
        assert block.facts == whole.facts
    for block in given[: -1 : 1 if kind == "files" else 15]:
        at, state = block.number, block.state
        for whole in given[at : at + 20 : 5 if at % 4 else 1]:  # stopped again and again
            state = json.loads(json.dumps(state))  # as a checkpoint keeps it
            reading = blocks(Stream(source, "en", tokenizer), LENGTH, BLOCK, at, state)
            again = next(other for other in reading if other.number == whole.number)
            assert (again.tokens == whole.tokens).all()
            assert (again.starts == whole.starts).all()
            assert again.facts == whole.facts
            at, state = whole.number, again.state


def test_no_more_is_read_than_the_block_and_a_batch_need(folder, tokenizer, monkeypatch):
    read, plain = [], FileRows.__iter__

    def counted(self):
        for place, row in plain(self):
            read.append(row["text"])
            yield place, row

    monkeypatch.setattr(FileRows, "__iter__", counted)
    stream = Stream(source_of(folder, test_one_in=0), "en", tokenizer)
    reading = blocks(stream, LENGTH, BLOCK)
    assert read == []
    for number in range(1, 40):
        block = next(reading)
        lengths = np.cumsum([len(tokenizer(text)["input_ids"]) + 2 for text in read])
        needed = int(np.searchsorted(lengths, number * LENGTH * BLOCK, side="right")) + 1
        assert len(read) <= needed + 2
        assert block.facts["documents"] == len(read)


@pytest.mark.parametrize("mask", [False, True])
def test_sequences_are_those_that_are_packed(folder, tokenizer, make_store, mask):
    ids, starts = by_hand(folder, tokenizer, 3 * LENGTH * BLOCK + 1)
    documents = [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    packed = Packed(make_store(documents), LENGTH, mask)
    streamed = Streamed(Stream(source_of(folder), "en", tokenizer), LENGTH, mask, BLOCK)
    for block in islice(blocks(streamed.stream, LENGTH, BLOCK), 3):
        streamed.take(block, 0)
    numbers = np.arange(3 * BLOCK)
    assert streamed.labels(numbers).tolist() == packed.labels(numbers).tolist()
    for number in numbers.tolist():
        expected, given = packed.sequence(number), streamed.sequence(number)
        assert expected.keys() == given.keys()
        for name, values in expected.items():
            assert values.dtype == given[name].dtype
            assert values.tolist() == given[name].tolist()
    streamed.take(block, 2)
    assert list(streamed.held) == [2]


def test_the_order_of_a_stream_is_its_own_but_for_blocks():
    target = [Pool(("a",), 0.75), Pool(("b",), 0.25)]
    order = Order({"a": None, "b": None, "old": 10}, target, 4000, 1,
                  [Mixed([Pool(("old",), 1.0)], 0.2, 4000)], block=16)  # fmt: skip
    language, sequence = order.places(0, 4000)
    assert order.epochs == {"old": pytest.approx(80, abs=1)}
    assert order.shares == pytest.approx({"a": 0.6, "b": 0.2}, abs=0.002)
    for number in (0, 1):
        mine = sequence[language == number]
        whole = len(mine) // 16 * 16
        shuffled = mine[:whole].reshape(-1, 16)
        assert (np.sort(shuffled) == np.arange(whole).reshape(-1, 16)).all()
        assert len({tuple(block) for block in (shuffled % 16).tolist()}) > 10
    sizes = {"a": None, "b": None, "old": 10}
    assert order.digest != Order({**sizes, "a": 10}, target, 4000, 1).digest


@pytest.fixture
def make_loader(folder, tokenizer):
    """Two streamed languages, a stored one mixed in; new objects each time, as in a new start."""
    write_texts(folder, "zh", seed=1)

    def make(make_store, rank=0, world=1, micro_batch=2, **changes):
        settings = Optimization(
            max_steps=30, sequence_length=LENGTH, micro_batch=micro_batch, batch_tokens=8 * LENGTH
        )
        source = source_of(folder, **changes)
        parts = {
            name: Streamed(Stream(source, name, tokenizer), LENGTH, True, BLOCK)
            for name in ("en", "zh")
        }
        stored = {"old": Packed(make_store([[5] * 7 + [n] for n in range(20)]), LENGTH, True)}
        order = Order(
            {"en": None, "zh": None, "old": 20}, [Pool(("en",), 0.7), Pool(("zh",), 0.3)],
            240, 0, [Mixed([Pool(("old",), 1.0)], 0.25, 120)], block=BLOCK,
        )  # fmt: skip
        return SequenceLoader({**parts, **stored}, order, settings, rank, world)

    return make


def rows_of(batch):
    return [row.tolist() for name in ("input_ids", "labels", "position_ids") for row in batch[name]]


def test_two_ranks_get_what_one_gets(make_loader, make_store):
    whole = [rows_of(batch) for batch in make_loader(make_store, micro_batch=4)]
    ranks = [list(make_loader(make_store, rank, 2)) for rank in (0, 1)]
    assert len(whole) == len(ranks[0]) == 60
    for number, expected in enumerate(whole):
        parts = [rank[number] for rank in ranks]
        given = [
            row.tolist()
            for name in ("input_ids", "labels", "position_ids")
            for part in parts
            for row in part[name]
        ]
        assert given == expected


def test_a_run_that_was_killed_goes_on_with_the_same_sequences(make_loader, make_store):
    whole = [rows_of(batch) for batch in make_loader(make_store)]
    loader = make_loader(make_store)
    states = [json.dumps(loader.state_dict() | {"at": 0})]
    for number, _ in enumerate(loader, 1):
        states.append(json.dumps(loader.state_dict() | {"at": number}))
    for text in states[::29]:
        state = json.loads(text)
        state["streams"] = {
            name: {int(number): at for number, at in known.items()}
            for name, known in state["streams"].items()
        }
        again = make_loader(make_store)
        again.load_state_dict(state)
        assert again.state_dict()["streams"] == state["streams"]  # saved again before a step
        rest = [rows_of(batch) for batch in islice(again, 25)]
        assert rest == whole[state["at"] : state["at"] + 25]


def test_what_is_held_is_bounded(make_loader, make_store):
    loader = make_loader(make_store)
    for _ in loader:
        for part in loader._packed[:2]:
            assert len(part.held) <= 8 // BLOCK + 1  # 8 sequences are an optimizer step


def test_other_texts_are_refused_on_resuming(make_loader, make_store, folder):
    loader = make_loader(make_store)
    next(iter(loader))
    state = loader.state_dict()
    for change in ({"test_one_in": 5}, {"key_field": "id"}, {"bad_lines": "skip"}):
        with pytest.raises(UserError, match="changed since the checkpoint"):
            make_loader(make_store, **change).load_state_dict(state)
    with (folder / "zh" / "2.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="changed since the checkpoint"):
        make_loader(make_store).load_state_dict(state)


def test_blocks_come_when_they_are_needed(folder, tokenizer):
    order = Order({"en": None}, [Pool(("en",), 1.0)], 64, 0, block=BLOCK)
    streams = {"en": Stream(source_of(folder), "en", tokenizer)}
    given = [block.number for _, block in read_blocks(streams, LENGTH, order, 6, 0, {})]
    assert given == list(range(15))  # of 10 steps of 6 sequences
    assert needed_blocks(order, streams, 6, 1) == {"en": [1, 2]}
    later = [block.number for _, block in read_blocks(streams, LENGTH, order, 6, 4, {})]
    assert later == list(range(6, 15))


def test_what_cannot_be_streamed(folder, tokenizer, make_loader, make_store):
    with pytest.raises(UserError, match=r"no texts for language 'eng' in .*did you mean 'en'"):
        Stream(source_of(folder), "eng", tokenizer)
    with pytest.raises(UserError, match="messages_field is read"):
        Stream(source_of(folder, text_field="text", messages_field="m"), "en", tokenizer)
    with pytest.raises(UserError, match="streaming without documents reads texts without an end"):
        read_languages(source_of(folder))
    stream = Stream(source_of(folder, test_one_in=1), "en", tokenizer)
    with pytest.raises(UserError, match="'en' has no training document: 39 are held out, 0 bad"):
        next(blocks(stream, LENGTH, BLOCK))
    hub = hub_of(folder, "jsonl")
    with pytest.raises(UserError, match="no texts for language 'zh'"):
        Stream(hub, "zh", tokenizer)
    hub.text_field = "meta.txt"
    with pytest.raises(UserError, match=r"no field 'meta\.txt' .*did you mean 'meta\.text'"):
        next(blocks(Stream(hub, "en", tokenizer), LENGTH, BLOCK))
    path = folder / "en" / "1.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    loader = make_loader(make_store, test_one_in=0)
    with pytest.raises(UserError, match=r"1\.jsonl line 14 is no JSON"):
        list(loader)
    skipping = make_loader(make_store, test_one_in=0, bad_lines="skip")
    list(skipping)
    assert skipping._packed[0].facts["skipped"] >= 1


@pytest.mark.exhaustive
def test_another_process_reads_the_same_and_tells_what_it_comes_upon(
    make_loader, make_store, monkeypatch, folder
):
    # 256 documents at once there: where blocks begin is told otherwise, their content is the same.
    expected = [rows_of(batch) for batch in make_loader(make_store)]
    monkeypatch.setattr(Ahead, "apart", True)
    assert [rows_of(batch) for batch in make_loader(make_store)] == expected
    path = folder / "en" / "1.jsonl"
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(UserError, match=r"1\.jsonl line 14 is no JSON"):
        list(make_loader(make_store))


@pytest.mark.exhaustive
def test_a_reader_that_was_killed_is_told(make_loader, make_store, monkeypatch):
    monkeypatch.setattr(Ahead, "apart", True)
    reading = iter(make_loader(make_store))
    next(reading)
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(UserError, match="the process that reads the texts ended with -9"):
        list(reading)
