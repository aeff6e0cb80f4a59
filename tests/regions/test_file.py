"""Region files: what is saved comes back, and nothing damaged or foreign gets in."""

import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from freezetrain.errors import UserError
from freezetrain.regions import Base, Entries, Region, fingerprint
from freezetrain.regions.storage import read_safetensors, write_safetensors


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(20, 40)
        self.out = nn.Linear(40, 5, bias=False)
        self.norm = nn.LayerNorm(5)


def region(base: Base | None = None) -> Region:
    """One parameter of every kind, and one without entries."""
    made = Region(
        {
            "proj.weight": Entries.from_indices((40, 20), [3, 700, 799]),
            "proj.bias": Entries.from_mask(torch.arange(40) % 3 == 0),
            "out.weight": Entries.from_columns((5, 40), [0, 39]),
            "norm.weight": Entries.whole((5,)),
            "norm.bias": Entries.empty((5,)),
        },
        base=base,
        made={"score": "taylor", "ratio": 0.01},
    )
    kinds = [entries.kind for entries in made.values()]
    assert kinds == ["indices", "all", "columns", "bits", "indices"]
    return made


@pytest.mark.parametrize("max_shard_bytes", [10**9, 8])
@pytest.mark.parametrize("base", [None, Base("org/model", "main", "0" * 64)])
def test_round_trip(tmp_path, base, max_shard_bytes):
    saved = region(base)
    path = saved.save(tmp_path / "core", max_shard_bytes=max_shard_bytes)
    assert path.is_dir() == (max_shard_bytes == 8)
    loaded = Region.load(path)
    assert loaded == saved
    assert list(loaded) == list(saved)
    assert all(loaded[name] == saved[name] for name in saved)
    assert (loaded.base, loaded.made, loaded.digest) == (saved.base, saved.made, saved.digest)


def test_an_empty_region_takes_the_place_of_another_only_when_asked(tmp_path):
    path = region().save(tmp_path / "core")
    with pytest.raises(UserError, match="exists"):
        Region({}).save(path)
    assert Region.load(Region({}).save(path, overwrite=True)) == Region({})


def test_size_is_at_most_four_bytes_an_entry_or_one_bit_a_weight(tmp_path):
    torch.manual_seed(0)
    for density in (0.01, 0.5):
        saved = Region.from_masks({"w": torch.rand(300, 400) < density})
        size = saved.save(tmp_path / str(density)).stat().st_size
        assert size <= min(4 * saved.count, saved.numel // 8) + 1000  # the header


def test_the_header_can_be_read_without_this_package(tmp_path):
    base = Base("org/model", "main", "0" * 64)
    path = region(base).save(tmp_path / "core.safetensors")
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["freezetrain"])
        assert set(file.keys()) == {"proj.weight", "proj.bias", "out.weight", "norm.bias"}
    assert header["format"] == "freezetrain-region/1"
    assert header["parameters"]["proj.weight"] == {"shape": [40, 20], "kind": "indices"}
    assert header["base"] == {"name": "org/model", "revision": "main", "fingerprint": "0" * 64}
    assert header["made"] == {"score": "taylor", "ratio": 0.01}
    assert header["digest"] == region().digest


def test_loading_for_a_model_checks_names_shapes_and_base(tmp_path):
    net = Net()
    path = region(Base("net", None, fingerprint(net))).save(tmp_path / "core")
    assert Region.load(path, net) == region()
    with pytest.raises(UserError, match="made for another model, net"):
        Region.load(path, Net())
    other = Net()
    other.proj = nn.Linear(20, 41)
    with pytest.raises(UserError, match=r"'proj.bias' of shape \[40\], the model of shape \[41\]"):
        Region.load(path, other)
    other = Net()
    other.norms = other.norm
    del other.norm
    with pytest.raises(UserError, match=r"no parameter 'norm.bias' \(did you mean 'norms.bias'"):
        Region.load(path, other)


def set_data(name, data):
    def change(tensors, header):
        tensors[name] = data

    return change


def set_stored(name, **fields):
    def change(tensors, header):
        header["parameters"][name].update(fields)

    return change


def bits_with_a_spare_one():
    header = {"w": {"shape": [12], "kind": "bits"}}

    def change(tensors, full_header):
        tensors["w"] = torch.tensor([0b1111, 0b10011], dtype=torch.uint8)
        full_header["parameters"].update(header)

    return change


DAMAGE = [
    (set_data("proj.weight", torch.tensor([3, 800], dtype=torch.int32)), "0 to 799, got 800"),
    (set_data("proj.weight", torch.tensor([-1, 800], dtype=torch.int32)), "0 to 799, got -1"),
    (set_data("proj.weight", torch.tensor([5, 3], dtype=torch.int32)), "unsorted or repeated"),
    (set_data("proj.weight", torch.tensor([3, 3], dtype=torch.int32)), "unsorted or repeated"),
    (set_data("proj.weight", torch.tensor([3, 700])), "int32 .* got torch.int64"),
    (set_data("proj.weight", torch.zeros(1, 1, dtype=torch.int32)), r"got torch.int32 of \[1, 1\]"),
    (set_data("proj.weight", torch.tensor([3, 701, 799], dtype=torch.int32)), "digest differs"),
    (set_data("out.weight", torch.tensor([40], dtype=torch.int32)), "columns .* 0 to 39, got 40"),
    (set_data("proj.bias", torch.zeros(6, dtype=torch.uint8)), r"expected 5 bytes .* of \[6\]"),
    (set_data("proj.bias", torch.zeros(5, dtype=torch.int8)), "uint8.* got torch.int8"),
    (bits_with_a_spare_one(), "beyond the last of 12"),
    (set_data("norm.weight", torch.zeros(1, dtype=torch.int32)), "data is unexpected"),
    (set_data("other", torch.zeros(1, dtype=torch.int32)), "'other', which its header does not"),
    (lambda tensors, header: tensors.pop("proj.bias"), "proj.bias': data is missing"),
    (set_stored("proj.weight", kind="cells"), "unknown kind of entries 'cells'"),
    (set_stored("proj.weight", shape=[-40, -20]), "negative"),
    (set_stored("proj.weight", shape=[20, 40]), "digest differs"),
    (set_stored("proj.weight", shape="x"), "header of .* whole numbers as a shape, got 'x'"),
    (set_stored("proj.weight", shape=[40.0, 20.0]), r"whole numbers as a shape, got 40\.0"),
    (set_stored("proj.weight", shape=[2**62, 2**62]), "claims .* entries .* more than a param"),
    (set_stored("norm.weight", shape=[10**15]), "claims 1,000,000,000,000,000 entries"),
    (
        lambda tensors, header: header.update(
            base={"name": None, "revision": None, "fingerprint": 5}
        ),
        "header of .*: expected a base of a name",
    ),
    (set_stored("proj.bias", kind="rows"), "int32"),
    (lambda tensors, header: header.pop("parameters"), "header of .*: 'parameters' is missing"),
    (lambda tensors, header: header.pop("digest"), "header of .*: 'digest' is missing"),
    (lambda tensors, header: header.update(base={"who": 1}), "header of .* argument 'who'"),
    (lambda tensors, header: header.update(parameters=[1]), "header of .* a value of type list"),
    (lambda tensors, header: header.update(digest="0"), "digest differs"),
]


@pytest.mark.parametrize(("change", "words"), DAMAGE)
def test_damage_is_refused(tmp_path, change, words):
    tensors, header = read_safetensors(region().save(tmp_path / "good"), "region")
    tensors = dict(tensors)
    change(tensors, header)
    path = write_safetensors(tmp_path / "bad", tensors, header)
    with pytest.raises(UserError, match=words):
        Region.load(path)


def test_a_region_stored_in_a_longer_form_loads_into_the_canonical_one(tmp_path):
    tensors, header = read_safetensors(region().save(tmp_path / "core"), "region")
    mask = region()["out.weight"].mask()
    tensors = dict(tensors)
    tensors["out.weight"] = mask.flatten().nonzero().flatten().int()
    header["parameters"]["out.weight"]["kind"] = "indices"
    loaded = Region.load(write_safetensors(tmp_path / "long", tensors, header))
    assert loaded["out.weight"].kind == "columns"
    assert loaded == region()
