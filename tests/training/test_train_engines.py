"""`freezetrain train` on two ranks under every engine: as on one, also stopped and resumed."""

import re
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from command_runs import ENGINES, Run, start
from logged import csv_points, tensorboard_points
from made_rehearsal import rehearse
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from freezetrain.freezing import compare_weights
from freezetrain.regions import Region

# What stays near the base: on one device and under DDP alone.
NEAR_BASE = {
    "L2": {"penalty": {"strength": 5.0}, "pull": None},
    "averaged": {"average_with_base": 0.5},
    "LoRA": {"lora": {"rank": 4}, "region": None, "pull": None},
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, model_folder, make_model) -> dict:
    """Target, replay in the first half, rehearsal, documents apart, region, pull, evaluation,
    accumulation; what is rehearsed another model says, so that its KL is not zero at first."""
    folder = tmp_path_factory.mktemp("recipe")
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    Region.random(model, 0.2, seed=3).save(folder / "region.safetensors")
    other = make_model(seed=7, initializer_range=0.2)
    rehearse(folder / "drawn", model_folder, [40, 32, 9, 20, 6], seed=1, model=other)
    return {
        "model": {"path": str(model_folder)},
        "languages": ["zh"],
        "replay": {"languages": ["en", "es"], "share": 0.25, "until": 0.5, "temperature": 2.0},
        "rehearse": {"folder": str(folder / "drawn"), "share": 0.3, "until": 0.75},
        "region": str(folder / "region.safetensors"),
        "pull": {"strength": 5.0},
        "optimization": {
            "max_steps": 8,
            "sequence_length": 32,
            "document_mask": True,
            "micro_batch": 2,
            "batch_tokens": 256,
            "learning_rate": 0.01,
            "weight_decay": 0.1,
            "warmup_steps": 2,
            "clip_norm": 0.5,
        },
        "watch": {"languages": ["en", "zh", "ko"], "every_n_steps": 4, "max_length": 64},
        "logger": ["tensorboard", "csv"],
        "checkpoint_every": 100,
        "workers": 1,
    }


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory) -> Run:
    run = Run(tmp_path_factory.mktemp("alone") / "run", recipe)
    start(run, world=1)
    return run


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=2e-5, msg=name)


def by_engine(*exhaustive: str) -> list:
    return [
        pytest.param(kind, marks=pytest.mark.exhaustive) if kind in exhaustive else kind
        for kind in ENGINES
    ]


@pytest.mark.exhaustive
def test_two_groups_of_two_ranks_train_as_one(recipe, alone, tmp_path, model_folder):
    """Weights are split over two ranks, twice; the run is stopped, and goes on."""
    engine = {"kind": "fsdp2", "replicas": 2}
    run = Run(tmp_path / "run", {**recipe, "engine": engine})
    start(run, world=4, stop_in=5)
    start(run, world=4)
    assert_close(run.weights, alone.weights)
    assert run.sequences == alone.sequences
    region = Region.load(recipe["region"])
    assert (
        compare_weights(load_file(model_folder / "model.safetensors"), run.weights, region).moved
        == 0
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "zero-2"])
def test_two_ranks_train_as_one_with_compiled_blocks(recipe, alone, tmp_path, kind):
    run = Run(tmp_path / "run", {**recipe, "engine": {"kind": kind, "compile": True}})
    start(run, world=2, timeout=400)  # the compiler of C++ takes its time
    assert_close(run.weights, alone.weights)
    assert run.results["frozen_entries"] > 0


def test_what_is_logged_is_in_the_table_and_in_the_results(recipe, alone):
    """Of every metric that docs/results.md names, but for those of GPUs and of penalties."""
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    table = page.partition("### What loggers get")[2].partition("###")[0]
    rows = re.findall(r"^\| (`.+?`) \|", table, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(.+?)`", row)}
    points, drawn = csv_points(alone.folder), tensorboard_points(alone.folder)
    used = set()
    for name in points:
        general = re.sub(r"^(forgetting)/[^/]+(/.+)", r"\1/LANGUAGE\2", name)
        used.add(re.sub(r"^pull/.+", "pull/PARAMETER", general))
    assert named - used == {"train/flops_utilization", "train/penalty"}
    assert used <= named
    assert points.keys() == drawn.keys()
    for name, found in points.items():
        assert drawn[name] == [(step, pytest.approx(value, rel=1e-6)) for step, value in found]

    results, evaluations = alone.results, alone.evaluations
    assert [step for step, _ in points["train/loss"]] == list(range(1, 9))
    assert points["train/loss"][-1] == (8, pytest.approx(results["final_loss"]))
    assert points["train/tokens"] == [(step, 256.0 * step) for step in range(1, 9)]
    for name in ("mean", "target_gain"):
        expected = [(each["step"], each["forgetting"][name]) for each in evaluations]
        assert [step for step, _ in expected] == [0, 4, 8]
        assert points[f"forgetting/{name}"] == expected
        assert points[f"final/{name}"] == [(8, results["forgetting"][name])]
    history = results["rehearsal"]["history"]
    assert points["train/rehearsal_kl"] == [
        (each["step"], pytest.approx(each["kl"], rel=1e-6)) for each in history
    ]
    for kind, distance in results["pull"]["distances"].items():
        assert points[f"pull/{kind.replace('*', 'N')}"] == [(8, distance)]

    told = yaml.safe_load((alone.folder / "csv" / "hparams.yaml").read_text())
    region = Region.load(recipe["region"])
    assert told["frozen"]["digest"] == region.digest
    assert told["frozen"]["entries"] == region.count == results["frozen_entries"]
    assert told["optimization"]["learning_rate"] == 0.01


@pytest.mark.parametrize("kind", by_engine("zero-1"))  # which goes the way of zero-2
def test_two_ranks_train_as_one(recipe, alone, model_folder, tmp_path, kind):
    engine = {"kind": kind, "gradient_checkpointing": 2}  # of the first of two blocks
    run = Run(tmp_path / "run", {**recipe, "engine": engine})
    start(run, world=2)
    assert_close(run.weights, alone.weights)
    assert run.sequences == alone.sequences
    results, expected = run.results, alone.results
    assert results["final_loss"] == pytest.approx(expected["final_loss"], rel=1e-5)
    assert results["data"] == expected["data"]
    assert expected["rehearsal"]["kl"] > 1e-5
    rehearsed, one = results["rehearsal"], expected["rehearsal"]
    assert rehearsed["kl"] == pytest.approx(one["kl"], rel=1e-4)
    near = [{**entry, "kl": pytest.approx(entry["kl"], rel=1e-4)} for entry in one["history"]]
    assert rehearsed == {**one, "kl": rehearsed["kl"], "history": near}
    for language, figures in expected["forgetting"]["languages"].items():
        assert results["forgetting"]["languages"][language] == {
            name: pytest.approx(value, rel=1e-3, abs=1e-5) for name, value in figures.items()
        }
    pulled, distances = results["pull"], expected["pull"]["distances"]
    assert pulled == {"strength": 5.0, "distances": pytest.approx(distances, rel=1e-3)}
    region = Region.load(recipe["region"])
    base = load_file(model_folder / "model.safetensors")
    compared = compare_weights(base, run.weights, region)
    assert (compared.moved, compared.checked) == (0, region.count)
    assert compared.changed > 10_000
    AutoModelForCausalLM.from_pretrained(run.folder / "model")


@pytest.mark.parametrize(
    "name",
    [
        "L2",
        pytest.param("averaged", marks=pytest.mark.exhaustive),
        "LoRA",
        pytest.param("teacher", marks=pytest.mark.exhaustive),
    ],
)
def test_two_ranks_stay_near_the_base_as_one(recipe, alone, tmp_path, name):
    changes = {**recipe, **NEAR_BASE.get(name, {})}
    if name == "teacher":
        changes["rehearse"] = {**recipe["rehearse"], "teacher": "model"}
    one, two = (Run(tmp_path / f"{world}", changes) for world in (1, 2))
    start(one, world=1)
    start(two, world=2)
    assert_close(two.weights, one.weights)
    plain = alone.weights
    assert max((plain[key] - value).abs().max() for key, value in two.weights.items()) > 1e-3
    adapters = 4 * 2 * 248  # rank, layers, inputs and outputs of a layer's matrices
    assert two.results.get("trained_weights") == (adapters if name == "LoRA" else None)


@pytest.mark.parametrize("kind", by_engine("ddp", "fsdp2", "zero-1", "zero-2"))
def test_stopped_and_resumed_by_other_numbers_of_ranks(recipe, alone, tmp_path, kind):
    """One rank to the midst of step 3, two to that of step 6, one to the end; in a moved folder."""
    run = Run(tmp_path / "here" / "run", {**recipe, "engine": {"kind": kind}})
    run.folder.parent.mkdir()
    start(run, world=1, stop_in=3)
    run.folder.parent.rename(tmp_path / "there")
    run = Run(tmp_path / "there" / "run", run.recipe)
    start(run, world=2, stop_in=6)
    start(run, world=1)
    assert run.sequences == alone.sequences
    assert run.results["resumed_from"] == "step=6.ckpt"
    assert_close(run.weights, alone.weights)
    for read in (csv_points, tensorboard_points):  # each step once, those of the stops too
        logged, expected = read(run.folder), read(alone.folder)
        assert logged.keys() == expected.keys()
        for name in logged.keys() - {"train/hours_left"}:  # from the second step of each start on
            steps = [step for step, _ in expected[name]]
            assert [step for step, _ in logged[name]] == steps, name
        for name in ("train/loss", "forgetting/en/perplexity"):
            near = [(step, pytest.approx(value, rel=1e-3)) for step, value in expected[name]]
            assert logged[name] == near


# Of an optimizer: the engines that it runs on, zero-2 with its state in CPU memory among them.
BORNE = {
    "adamw-8bit": ("ddp", "zero-1", "zero-2", "offload", "zero-3"),
    "adafactor": ("ddp",),
    "lion": (*ENGINES, "offload"),
    "muon": ("ddp", "fsdp2"),
    "torch.optim.NAdam": (*ENGINES, "offload"),
}
# Of the way that a matrix has moved. Muon rounds its products to bfloat16; moments in 8 bits have
# other scales where ranks hold other parts.
CLOSE = {"muon": 0.05, "adamw-8bit": 0.2}
PAIRS = [(name, kind) for name, kinds in BORNE.items() for kind in kinds]


def of_optimizer(recipe: dict, name: str) -> dict:
    """``recipe`` with this optimizer and learning rates of some groups; without what takes long and
    has no part in its steps, which the tests above look at."""
    own = {"optimizer": name, "learning_rate": 2e-3, "layer_decay": 0.8}
    if name == "torch.optim.NAdam":
        own["optimizer_args"] = {"decoupled_weight_decay": True}
    own["learning_rate_factors"] = {"*v_proj*": 2.0, "lm_head*": 0.5}
    rest = {key: recipe[key] for key in recipe.keys() - {"rehearse", "logger"}}
    return {**rest, "watch": {"off": True}, "optimization": {**recipe["optimization"], **own}}


@pytest.fixture(scope="module")
def one_rank(recipe, tmp_path_factory):
    """The weights that each optimizer leaves on one device."""

    @cache
    def weights(name: str) -> dict[str, torch.Tensor]:
        run = Run(tmp_path_factory.mktemp("one") / "run", of_optimizer(recipe, name))
        start(run, world=1)
        return run.weights

    return weights


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_each_optimizer_on_each_engine_that_bears_it(
    recipe, one_rank, model_folder, tmp_path, name, kind
):
    """Frozen, pulled and with rates of its own; stopped in step 5 and resumed, as without a stop"""
    engine = {"kind": "zero-2", "offload": "optimizer"} if kind == "offload" else {"kind": kind}
    changes = {**of_optimizer(recipe, name), "engine": engine}
    whole, stopped = (Run(tmp_path / part, changes) for part in ("whole", "stopped"))
    start(stopped, world=2, stop_in=5)
    start(stopped, whole, world=2)
    assert stopped.results["resumed_from"] == "step=5.ckpt"
    for key, value in whole.weights.items():
        assert torch.equal(stopped.weights[key], value), key
    region, base = Region.load(recipe["region"]), load_file(model_folder / "model.safetensors")
    compared = compare_weights(base, whole.weights, region)
    assert (compared.moved, compared.checked) == (0, region.count)
    expected = one_rank(name)
    for key, value in expected.items():
        off, moved = (whole.weights[key] - value).norm(), (value - base[key]).norm()
        assert moved > 0
        assert off < CLOSE.get(name, 1e-4) * moved, key


@pytest.mark.exhaustive
def test_rehearsed_in_16_bits_with_all_offloaded(recipe, alone, tmp_path):
    settings = {**recipe["optimization"], "precision": "bf16-mixed"}
    engine = {"kind": "zero-3", "offload": "all"}
    changes = {"optimization": settings, "engine": engine, "region": None}
    run = Run(tmp_path / "run", {**recipe, **changes})
    start(run, world=2)
    assert run.sequences == alone.sequences
    kl, expected = (one.results["rehearsal"]["kl"] for one in (run, alone))
    assert kl == pytest.approx(expected, rel=0.1)
