"""Regions compared on the command line: names, files, what is refused."""

import csv
import json
from pathlib import Path

import pytest

from freezetrain.analysis.overlap import Overlap, compare_regions, region_files, run
from freezetrain.analysis.recipe import OverlapRecipe
from freezetrain.errors import UserError
from freezetrain.regions import Base, Region
from freezetrain.typed_json import from_json


@pytest.fixture
def folder(model, make_model, tmp_path) -> Path:
    """Regions of two models of equal shape: one by itself, one of shards, two in a folder."""
    (tmp_path / "many").mkdir()
    (tmp_path / "run").mkdir()
    for seed, name in enumerate(("run/region", "many/zh", "many/ja")):
        base = Base(None, None, str(seed))
        parameters = ["*q_proj.weight", "*down_proj.weight"]
        region = Region.random(model, 0.2, seed=seed, parameters=parameters, base=base)
        region.save(tmp_path / f"{name}.safetensors")
    whole = Region.random(make_model(1), 0.3, seed=9, parameters=["model.layers.*"])
    whole.save(tmp_path / "shards.safetensors", max_shard_bytes=500)
    assert (tmp_path / "shards.safetensors").is_dir()
    return tmp_path


def test_compares_files_folders_and_shards(folder):
    out = folder / "out"
    out.mkdir()
    places = [str(folder / name) for name in ("run/region.safetensors", "many")]
    places.append(str(folder / "shards.safetensors"))
    outcome = run(OverlapRecipe(places), out)
    found = outcome.results
    assert found["names"] == ["run", "ja", "zh", "shards"]
    assert from_json(Overlap, json.loads(json.dumps(found))).names == found["names"]
    held = [Region.load(path) for path in found["files"]]
    masks = [
        {(name, i) for name, entries in region.items() for i in entries.indices().tolist()}
        for region in held
    ]
    for row, a in zip(found["jaccard"], masks, strict=True):
        assert row == [len(a & b) / len(a | b) for b in masks]
    with (out / "overlap.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert [(row["a"], row["b"]) for row in rows] == [
        (found["names"][a], found["names"][b]) for a, b in pairs
    ]
    for row, (a, b) in zip(rows, pairs, strict=True):
        assert float(row["jaccard"]) == found["jaccard"][a][b]
        assert float(row["expected"]) == found["expected"][a][b]
    pictures = {path.name for path in (out / "pictures").iterdir()}
    names = ("jaccard", "layers", "kinds")
    assert pictures == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}


def test_shares_are_of_the_parameters_that_count(model):
    region = Region.tensors(model, ["model.layers.1.mlp.*"])
    numels = {name: weight.numel() for name, weight in model.named_parameters()}
    found = compare_regions({"a": region}, numels)
    block = [(n, w) for n, w in model.named_parameters() if n.startswith("model.layers.1.")]
    mlp = sum(weight.numel() for name, weight in block if ".mlp." in name)
    assert found.by_layer["a"] == {0: 0.0, 1: mlp / sum(w.numel() for _, w in block)}
    assert found.by_kind["a"]["mlp.up_proj"] == 0.5
    assert found.by_kind["a"]["self_attn.q_proj"] == 0.0
    assert found.expected == [[pytest.approx(1.0)]]


def test_names_are_as_many_as_regions_and_differ(folder):
    places = [str(folder / "many")]
    with pytest.raises(UserError, match="a name for each of 2 regions, got 1"):
        run(OverlapRecipe(places, ["a"]), folder)
    with pytest.raises(UserError, match="'a' twice"):
        run(OverlapRecipe(places, ["a", "a"]), folder)
    with pytest.raises(UserError, match="each path once"):
        run(OverlapRecipe([*places, *places]), folder)


def test_a_folder_without_regions_and_other_shapes_are_refused(folder, make_model):
    (folder / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty, and it has no \*.safetensors"):
        region_files([str(folder / "empty")])
    other = Region.random(make_model(hidden_size=32), 0.1, seed=0, parameters=["*q_proj.weight"])
    other.save(folder / "other.safetensors")
    with pytest.raises(UserError, match="one shape in all regions"):
        run(OverlapRecipe([str(folder / "many"), str(folder / "other.safetensors")]), folder)
    with pytest.raises(UserError, match="regions must be one or more"):
        OverlapRecipe([])
