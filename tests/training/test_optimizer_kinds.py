"""Optimizers by name and by path: what they are made of, refused for, keep and go on with."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM, LlamaConfig

from freezetrain.errors import UserError
from freezetrain.ranks import Launch
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.optimizers import OPTIMIZERS
from freezetrain.recipe.sources import ModelSource
from freezetrain.training import dry_run
from freezetrain.training.memory import estimate
from freezetrain.training.muon import MuonWithAdamW
from freezetrain.training.optimizer import build_optimizer
from freezetrain.training.optimizer_kinds import require_optimizer, require_split, state_bytes
from freezetrain.training.recipe import Pull, TrainRecipe, Watch


def optimization(name, **settings):
    return Optimization(optimizer=name, warmup_steps=0, precision="32-true", **settings)


def step(model, optimizer, schedule, seed):
    source = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=source).to(parameter.dtype)
    optimizer.step()
    schedule.step()


# bitsandbytes takes its time to be imported, and comes along with the exhaustive tests alone.
NAMED = [
    pytest.param(name, marks=pytest.mark.exhaustive) if name == "adamw-8bit" else name
    for name in OPTIMIZERS
]
ALL = [*NAMED, "torch.optim.NAdam"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_goes_on_from_a_checkpoint_bit_for_bit(name, dtype, make_model, tmp_path):
    """In 16 bits too, where PyTorch would round statistics in fp32 as it loads them."""
    settings = optimization(name, learning_rate=1e-3, layer_decay=0.5)
    model = make_model().to(dtype)
    optimizer, schedule = build_optimizer(model, settings, 10)
    for seed in range(2):
        step(model, optimizer, schedule, seed)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    torch.save({key: part.state_dict() for key, part in parts.items()}, tmp_path / "checkpoint")
    stored = torch.load(tmp_path / "checkpoint", weights_only=True)
    again = make_model(seed=1).to(dtype)
    loaded = dict(zip(parts, (again, *build_optimizer(again, settings, 10)), strict=True))
    for key, part in loaded.items():
        part.load_state_dict(stored[key])
    for seed in range(2, 4):
        step(model, optimizer, schedule, seed)
        step(*loaded.values(), seed)
    for (key, value), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(value, other), key


@pytest.mark.parametrize("name", [*ALL, "my_optimizers.Signs"])
def test_what_is_kept_is_what_is_estimated(name, make_model):
    settings = optimization(name, learning_rate=1e-3)
    model = make_model()
    optimizer, schedule = build_optimizer(model, settings, 10)
    step(model, optimizer, schedule, 0)
    tables = {"qmap1", "qmap2"}  # of bitsandbytes, which all tensors share
    kept = sum(
        value.nbytes
        for state in optimizer.state.values()
        for key, value in state.items()
        if isinstance(value, torch.Tensor) and value.dim() and key not in tables
    )
    assert kept == state_bytes(model, settings, 4)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(model.config)
    assert state_bytes(empty, settings, 4) == kept


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are told by Linux")
@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "adamw-8bit"])
def test_what_a_step_takes_on_the_way_is_what_is_estimated(name):
    side = 4096  # 64 MiB, which the allocator gives back at once
    config = LlamaConfig(
        vocab_size=side, hidden_size=side, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    settings = Optimization(optimizer=name, precision="32-true")
    recipe = TrainRecipe(ModelSource("x"), optimization=settings, watch=Watch(off=True))
    parts = {part.name: part.device for part in estimate(model, recipe, 1, on_gpu=False).parts}
    said = subprocess.run(
        [sys.executable, Path(__file__).with_name("step_memory.py"), name, str(side)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = parts.get("arithmetic of the optimizer", 0)
    assert int(said.stdout) == pytest.approx(expected, rel=0.02, abs=2**20)


@pytest.mark.parametrize(
    ("name", "flat"),
    [("adamw", 8), ("adamw-8bit", 2 + 8 / 256), ("lion", 4), ("my_optimizers.Signs", 8)],
)
def test_laid_end_to_end_each_weight_takes_as_much(name, flat, model):
    weights = sum(parameter.numel() for parameter in model.parameters())
    kept = state_bytes(model, optimization(name), 4, flat=True)
    assert kept == pytest.approx(flat * weights)


@pytest.mark.parametrize(
    ("name", "settings", "complaint"),
    [
        ("torch.optim.NAdm", {}, "no torch.optim.Optimizer 'NAdm' .did you mean 'NAdam'"),
        ("torch.nn.Linear", {}, "torch.nn has no torch.optim.Optimizer 'Linear'"),
        ("my_optimizers.not_a_class", {}, "has no torch.optim.Optimizer 'not_a_class'"),
        ("no_such_room.Optimizer", {}, "cannot import no_such_room: No module named 'no_such_ro"),
        ("my_optimizers.NoRate", {}, "takes no learning rate lr, by which schedule and pull go"),
        ("my_optimizers.Twice", {}, "asked for the loss 4 times in 2 steps"),
        ("my_optimizers.Signs", {"optimizer_args": {"powr": 2}}, "'powr', which .* mean 'power'"),
        ("torch.optim.NAdam", {"optimizer_args": {"eps": -1}}, "cannot be made with {'eps': -1}: "),
        ("torch.optim.SparseAdam", {}, "cannot step a small matrix: SparseAdam does not support"),
        (
            "torch.optim.Rprop",
            {"weight_decay": 0.1},
            "weight_decay is 0.1, which torch.optim.Rprop",
        ),
        ("torch.optim.SGD", {"beta1": 0.8}, "beta1 is 0.8, which torch.optim.SGD does not take"),
        ("adamw", {"optimizer_args": {"eps": -1}}, "adamw cannot be made with {'eps': -1}: .*eps"),
        *(
            (
                name,
                {"optimizer_args": {wrong: 1}},
                f"{wrong}', which {name} .*{close}'.*takes .*eps",
            )
            for name, wrong, close in (
                ("adamw", "epss", "mean 'eps"),
                ("adafactor", "clip_treshold", "mean 'clip_threshold"),
                ("muon", "momentun", "mean 'momentum"),
            )
        ),
        ("adamw", {"optimizer_args": {"wait_decay": 1}}, r"does not take; it takes eps amsgrad "),
        ("muon", {"optimizer_args": {"ns_steps": 200}}, None),  # found as it steps
    ],
)
def test_refused_before_anything_is_loaded(name, settings, complaint):
    if complaint is None:
        require_optimizer(optimization(name, **settings), held=True, flat=False)
        return
    with pytest.raises(UserError, match=complaint):
        require_optimizer(optimization(name, **settings), held=False, flat=False)


def test_a_class_whose_step_runs_no_hooks_is_refused_where_weights_are_held():
    settings = optimization("my_optimizers.Unhooked")
    require_optimizer(settings, held=False, flat=False)
    with pytest.raises(UserError, match="cannot freeze under Unhooked"):
        require_optimizer(settings, held=True, flat=False)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("my_optimizers.Signs", True),
        ("torch.optim.NAdam", True),
        ("my_optimizers.Rows", False),
        ("torch.optim.Adafactor", False),
    ],
)
def test_a_class_that_needs_matrices_is_refused_where_they_are_flat(name, same):
    settings = optimization(name)
    require_optimizer(settings, held=True, flat=False)
    if same:
        require_optimizer(settings, held=True, flat=True)
        return
    with pytest.raises(UserError, match="otherwise than the same weights laid end to end"):
        require_optimizer(settings, held=True, flat=True)


def test_a_class_that_does_not_step_what_fsdp2_has_split_is_refused(tmp_path):
    init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for name in ("my_optimizers.Rows", "torch.optim.NAdam"):  # sums over rows are whole
            require_split(optimization(name), mesh)
        with pytest.raises(UserError, match="cannot step a small matrix that FSDP2 has split: "):
            require_split(optimization("torch.optim.Adafactor"), mesh)
    finally:
        destroy_process_group()


@pytest.mark.parametrize("name", ["lion", "adamw-8bit"])
def test_a_package_that_is_not_there_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr("freezetrain.extras.is_there", lambda _: False)
    extra = rf"pip install 'freezetrain\[{OPTIMIZERS[name].extra}\]'"
    with pytest.raises(UserError, match=extra):
        require_optimizer(optimization(name), held=False, flat=False)


def test_a_class_gets_what_the_recipe_says_and_its_own_arguments(model):
    settings = optimization(
        "my_optimizers.Signs",
        learning_rate=2e-3,
        weight_decay=0.1,
        beta2=0.9,
        optimizer_args={"power": [2, 3]},
        learning_rate_factors={"lm_head*": 0.5},
    )
    optimizer, _ = build_optimizer(model, settings, 10)
    assert optimizer.power == (2, 3)
    groups = [(g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups]
    betas = (0.9, 0.9)
    assert groups == [(2e-3, 0.1, betas), (2e-3, 0.0, betas), (1e-3, 0.1, betas)]


def test_the_schedule_multiplies_the_rate_of_each_group(model):
    settings = Optimization(
        learning_rate=1e-3, learning_rate_factors={"lm_head*": 0.5}, warmup_steps=4
    )
    optimizer, schedule = build_optimizer(model, settings, 10)
    for part in (0.25, 0.5, 0.75):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([1e-3 * part, 1e-3 * part, 5e-4 * part])
        step(model, optimizer, schedule, 0)


def test_muon_keeps_states_and_groups_of_both_in_one(model):
    settings = optimization("muon", learning_rate=1e-3, optimizer_args={"momentum": 0.5})
    optimizer, schedule = build_optimizer(model, settings, 10)
    assert isinstance(optimizer, MuonWithAdamW)
    step(model, optimizer, schedule, 0)
    assert set(optimizer.state) == set(model.parameters())
    muon, adamw = optimizer.optimizers
    assert {group["momentum"] for group in muon.param_groups} == {0.5}
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.95)}
    before = schedule.get_last_lr()[0]
    assert all(g["lr"] == before for part in (muon, adamw) for g in part.param_groups)
    assert {p.dim() for g in muon.param_groups for p in g["params"]} == {2}


def test_muon_without_a_matrix_of_a_block_is_refused(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    with pytest.raises(UserError, match="muon found no matrix to train"):
        build_optimizer(model, optimization("muon"), 10)


@pytest.mark.parametrize("name", NAMED)
def test_a_skipped_step_moves_nothing(name, make_model):
    """Gradients of None are how an update is left out."""
    model = make_model()
    optimizer, schedule = build_optimizer(model, optimization(name, weight_decay=0.5), 10)
    step(model, optimizer, schedule, 0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    after = list(model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), name


@pytest.mark.parametrize("name", ["lion", "torch.optim.NAdam"])
def test_the_dry_run_tells_the_state(name, model_folder, model, tmp_path):
    settings = optimization(name, max_steps=1, sequence_length=16)
    weights = sum(parameter.numel() for parameter in model.parameters())
    recipe = TrainRecipe(ModelSource(str(model_folder)), optimization=settings, pull=Pull(1.0))
    outcome = dry_run.run(recipe, Launch(), tmp_path / "out")
    moments = {"lion": 4, "torch.optim.NAdam": 8}[name]
    assert outcome.results["checkpoint_bytes"] == (4 + moments) * weights
    parts = {part.name: part.device for part in outcome.display[1].rows}
    assert parts[f"state of {name}"] == moments * weights


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (
            {"optimizer": "adam"},
            "optimizer must be one of adamw, .*, got 'adam' .did you mean 'ada",
        ),
        ({"optimizer": "torch..NAdam"}, "the import path of a class as torch.optim.NAdam, got"),
        ({"optimizer": "adafactor", "beta1": 0.8}, "beta1 must be left out where the optimizer is"),
        (
            {"optimizer_args": {"lr": 1.0}},
            "optimizer_args.lr must be left out: it follows from opt",
        ),
        ({"optimizer_args": {"betas": [0, 0]}}, "follows from optimization.beta1 and beta2"),
        ({"learning_rate_factors": {"a": 0.0}}, r"learning_rate_factors\.a must be above 0"),
        ({"layer_decay": 1.5}, "layer_decay must be above 0 and at most 1, got 1.5"),
    ],
)
def test_recipes_are_refused(made, complaint):
    with pytest.raises(UserError, match=complaint):
        Optimization(**made)


@pytest.mark.parametrize(
    ("name", "kind", "complaint"),
    [
        ("adafactor", "zero-2", "sums over rows and columns, and under DeepSpeed .* use adamw or "),
        ("adafactor", "fsdp2", "which FSDP2 has split; use adamw or lion or muon there"),
        ("adamw-8bit", "fsdp2", "bitsandbytes does not step tensors that FSDP2 has split"),
        ("muon", "zero-3", "takes whole matrices, and under DeepSpeed ranks step flat parts"),
    ],
)
def test_an_engine_that_does_not_bear_it_is_named(name, kind, complaint):
    settings = Optimization(optimizer=name)
    with pytest.raises(UserError, match=complaint):
        TrainRecipe(ModelSource("x"), optimization=settings, engine=Engine(kind=kind))
