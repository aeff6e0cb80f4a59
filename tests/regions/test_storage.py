"""Safetensors with a header: whole files or none, and every damaged one refused."""

import json
import os
from collections import UserDict
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file, save_file

from freezetrain.errors import UserError
from freezetrain.regions.storage import read_safetensors, write_safetensors

HEADER = {"format": "freezetrain-region/1", "made": {"languages": ["ar", "zh"]}}


def tensors() -> dict[str, torch.Tensor]:
    return {name: torch.arange(100.0) + i for i, name in enumerate(("a.weight", "b.weight", "c"))}


def write(path, size=10**9, **kwargs):
    return write_safetensors(path, tensors(), HEADER, max_shard_bytes=size, **kwargs)


@pytest.mark.parametrize(("size", "shards"), [(10**9, 0), (800, 2), (400, 3), (1, 3)])
def test_round_trip_of_one_file_or_shards(tmp_path, size, shards):
    path = write(tmp_path / "it.safetensors", size)
    assert path.is_dir() == bool(shards)
    if shards:
        assert len(list(path.glob(f"region-0000?-of-0000{shards}.safetensors"))) == shards
    read, header = read_safetensors(path, "region")
    assert header == HEADER
    assert read.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert torch.equal(read[name], tensor)
    assert os.listdir(tmp_path) == ["it.safetensors"]  # nothing temporary is left


def test_other_tools_read_the_file(tmp_path):
    assert torch.equal(load_file(write(tmp_path / "it"))["c"], tensors()["c"])


def test_tensors_that_share_memory_views_and_no_tensors_are_written(tmp_path):
    shared = torch.arange(12.0).view(3, 4)
    given = {"a": shared, "b": shared, "c": shared.t(), "d": shared[1], "e": torch.zeros(0)}
    given["f"] = torch.tensor(3.0)
    read, _ = read_safetensors(write_safetensors(tmp_path / "it", given, HEADER), "region")
    assert all(torch.equal(read[name], tensor) for name, tensor in given.items())
    read, header = read_safetensors(write_safetensors(tmp_path / "none", {}, HEADER), "region")
    assert (dict(read), header) == ({}, HEADER)


DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
)


@pytest.mark.parametrize("size", [10**9, 1])
def test_every_dtype_is_written_as_the_library_does(tmp_path, size):
    numbers = torch.arange(7) % 2 + 1  # of odd length: what follows one byte each must be aligned
    given = {str(dtype): numbers.to(dtype) for dtype in reversed(DTYPES)}
    path = write_safetensors(tmp_path / "it", given, HEADER, max_shard_bytes=size)
    read, _ = read_safetensors(path, "region")
    for name, tensor in given.items():
        assert read[name].dtype == read.dtype(name) == tensor.dtype
        assert read.shape(name) == (7,)
        assert torch.equal(read[name], tensor)
    if path.is_file():
        save_file(given, tmp_path / "theirs", {"freezetrain": json.dumps(HEADER)})
        theirs = load_file(tmp_path / "theirs")
        assert all(torch.equal(theirs[name], tensor) for name, tensor in load_file(path).items())
        assert path.stat().st_size == (tmp_path / "theirs").stat().st_size


class Made(UserDict):
    """Tensors that are made when asked for."""

    def __init__(self, make: Callable[[str], torch.Tensor]) -> None:
        super().__init__(tensors())
        self.make = make

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.make(name)


SHAPES = dict.fromkeys(tensors(), ((100,), torch.float32))


@pytest.mark.parametrize("size", [10**9, 800])
def test_each_tensor_is_asked_for_once_and_nothing_is_there_before_the_last(tmp_path, size):
    path, asked = tmp_path / "it", []

    def make(name: str) -> torch.Tensor:
        assert not path.exists()
        asked.append(name)
        return tensors()[name]

    write_safetensors(path, Made(make), HEADER, shapes=SHAPES, max_shard_bytes=size)
    assert asked == list(SHAPES)
    read, header = read_safetensors(path, "region")
    assert header == HEADER
    assert list(map(read.shape, tensors())) == [(100,)] * 3
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors().items())


@pytest.mark.parametrize("size", [10**9, 800])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_is_not_written_whole_leaves_nothing(tmp_path, size, error):
    def make(name: str) -> torch.Tensor:
        if name == "c" and error is KeyboardInterrupt:
            raise error
        return torch.zeros(99 if name == "c" else 100)

    with pytest.raises(error):
        write_safetensors(tmp_path / "it", Made(make), HEADER, shapes=SHAPES, max_shard_bytes=size)
    assert os.listdir(tmp_path) == []


def test_stored_tensors_are_read_when_asked_for_and_not_kept(tmp_path):
    path = write(tmp_path / "it", 400)
    read, _ = read_safetensors(path, "region")
    assert read["c"].data_ptr() != read["c"].data_ptr() or read["c"] is not read["c"]
    (path / "region-00002-of-00003.safetensors").unlink()
    assert torch.equal(read["c"], tensors()["c"])  # of another file
    assert "b.weight" in read
    assert read.shape("b.weight") == (100,)
    with pytest.raises(UserError, match=r"region-00002-of-00003.safetensors: No such file"):
        read["b.weight"]
    with pytest.raises(KeyError):
        read["d"]


@pytest.mark.parametrize("before", [10**9, 400])
@pytest.mark.parametrize("after", [10**9, 800])
def test_overwrite_replaces_a_file_or_a_folder_of_shards_only_when_asked(tmp_path, before, after):
    path = write(tmp_path / "it", before)
    with pytest.raises(UserError, match="exists; choose another path or pass overwrite"):
        write_safetensors(path, {}, HEADER)
    assert read_safetensors(path, "region")[0].keys() == tensors().keys()
    new = {"x": torch.ones(150), "y": torch.ones(150)}
    write_safetensors(path, new, HEADER, overwrite=True, max_shard_bytes=after)
    assert read_safetensors(path, "region")[0].keys() == new.keys()
    assert os.listdir(tmp_path) == ["it"]


def test_a_folder_of_something_else_is_never_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="folder that holds no region"):
        write(tmp_path / "model", overwrite=True)
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write(tmp_path / "it")

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("freezetrain.files.os.fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write .*it: .*No space left"):
        write_safetensors(path, {}, HEADER, overwrite=True)
    assert read_safetensors(path, "region")[0].keys() == tensors().keys()
    assert os.listdir(tmp_path) == ["it"]


def test_a_path_that_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "missing folder" / "it")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write(tmp_path / "file" / "it")


def test_every_truncation_is_refused(tmp_path):
    whole = write(tmp_path / "it").read_bytes()
    for length in [0, 4, 8, 9, len(whole) // 3, len(whole) // 2, len(whole) - 1]:
        (tmp_path / "cut").write_bytes(whole[:length])
        with pytest.raises(UserError, match="truncated or not a safetensors file"):
            read_safetensors(tmp_path / "cut", "region")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "not a freezetrain region"),
        ({"format": "pt"}, "not a freezetrain region"),
        ({"freezetrain": "{"}, "the header of the region .*: it is not JSON"),
        ({"freezetrain": "[1]"}, "a mapping with a format"),
        ({"freezetrain": "{}"}, "a mapping with a format"),
        ({"freezetrain": "[" * 10**5}, "nested too deeply"),
        ({"freezetrain": '{"format": "freezetrain-scores/1"}'}, "'freezetrain-scores/1' file, exp"),
        ({"freezetrain": '{"format": "freezetrain-region/2"}'}, "update freezetrain"),
    ],
)
def test_other_headers_are_refused(tmp_path, metadata, words):
    save_file({"a": torch.zeros(1)}, tmp_path / "it", metadata)
    with pytest.raises(UserError, match=words):
        read_safetensors(tmp_path / "it", "region")


def test_other_things_at_the_path_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no region at"):
        read_safetensors(tmp_path / "nothing", "region")
    with pytest.raises(UserError, match=r"holds no region.safetensors.index.json"):
        read_safetensors(tmp_path, "region")
    (tmp_path / "text").write_text("hello, this is text and no tensors at all")
    with pytest.raises(UserError, match="truncated or not a safetensors file"):
        read_safetensors(tmp_path / "text", "region")


def test_damaged_shards_are_refused(tmp_path):
    path = write(tmp_path / "it", 400)
    shard = path / "region-00002-of-00003.safetensors"
    index = path / "region.safetensors.index.json"
    good, good_index = shard.read_bytes(), index.read_text()

    shard.unlink()
    with pytest.raises(
        UserError, match=r"shard region-00002-of-00003.safetensors of .* is missing"
    ):
        read_safetensors(path, "region")

    shard.write_bytes(good[:-1])
    with pytest.raises(UserError, match="truncated"):
        read_safetensors(path, "region")

    other = {**HEADER, "made": {}}
    shard.unlink()
    write_safetensors(shard, {"b.weight": torch.zeros(100)}, other)
    with pytest.raises(UserError, match="belongs to another region"):
        read_safetensors(path, "region")

    shard.unlink()
    write_safetensors(shard, {"d": torch.zeros(100)}, HEADER)
    with pytest.raises(UserError, match=r"disagree about 'b.weight'"):
        read_safetensors(path, "region")

    shard.write_bytes(good)
    outside = json.loads(good_index)
    outside["weight_map"]["c"] = "../region-00003-of-00003.safetensors"
    index.write_text(json.dumps(outside))
    with pytest.raises(UserError, match="outside its folder"):
        read_safetensors(path, "region")

    index.write_text(good_index[:40])
    with pytest.raises(UserError, match=r"cannot read the index of the region .*: it is not JSON"):
        read_safetensors(path, "region")

    index.write_text(good_index)
    assert read_safetensors(path, "region")[1] == HEADER
