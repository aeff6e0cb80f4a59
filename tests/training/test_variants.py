"""`freezetrain train` with all that can be changed about it, against a loop in plain PyTorch."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from made_rehearsal import rehearse
from plain_training import ACCUMULATE, CLIP, DECAY, RATE, STEPS, Variant, train
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from freezetrain.freezing.weights_folder import WeightsFolder
from freezetrain.recipe.optimization import Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Entries, Region
from freezetrain.scoring import Scores
from freezetrain.training.data import read_data
from freezetrain.training.module import CausalLM
from freezetrain.training.plan import rehearsal_of
from freezetrain.training.recipe import (
    Freezing,
    Lora,
    Penalty,
    Pull,
    Rehearse,
    Replay,
    TrainRecipe,
    Watch,
)
from freezetrain.training.sharded import loader, teacher_of
from freezetrain.training.train import run

SETTINGS = {
    "max_steps": STEPS,
    "sequence_length": 16,
    "micro_batch": 2,
    "batch_tokens": 2 * 16 * ACCUMULATE,
    "learning_rate": RATE,
    "warmup_steps": 1,
    "weight_decay": DECAY,
    "clip_norm": CLIP,
    "precision": "32-true",
    "seed": 5,
}
NAMED = ("adamw-8bit", "adafactor", "lion", "muon")
MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def parameters(model_folder):
    return load_file(model_folder / "model.safetensors")


@pytest.fixture(scope="module")
def masks(parameters):
    """Kind of region -> parameter -> which entries."""
    generator = torch.Generator().manual_seed(2)

    def some(shape, share=0.3):
        return torch.rand(shape, generator=generator) < share

    matrices = {n: p for n, p in parameters.items() if n.split(".")[-2] in MATRICES}
    rows = {n: some((len(p), 1)).expand(p.shape) for n, p in matrices.items() if "q_proj" in n}
    columns = {
        n: some((1, p.shape[1])).expand(p.shape) for n, p in matrices.items() if "down_proj" in n
    }
    unused = some((400, 1), 0.5).expand(400, 16)
    return {
        "entries": {name: some(p.shape) for name, p in matrices.items()},
        "rows and columns": {**rows, **columns},
        "vocabulary": {"model.embed_tokens.weight": unused, "lm_head.weight": unused},
    }


@pytest.fixture(scope="module")
def region_files(masks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions")
    for kind, of_kind in masks.items():
        entries = {name: Entries.from_mask(mask) for name, mask in of_kind.items()}
        Region(entries).save(folder / f"{kind}.safetensors")
    return folder


@pytest.fixture(scope="module")
def fisher(parameters, tmp_path_factory):
    """A folder of scores of two languages, and what they mean: of the blocks' weights only."""
    folder, total = tmp_path_factory.mktemp("fisher"), {}
    for number, (language, batches) in enumerate({"en": 2, "es": 8}.items()):
        generator = torch.Generator().manual_seed(number)
        scores = {
            name: torch.rand(p.shape, generator=generator).pow(4)
            for name, p in parameters.items()
            if "layers" in name
        }
        made = {"method": "fisher", "batches": batches, "language": language}
        Scores(scores, made=made).save(folder / f"{language}.safetensors")
        for name, value in scores.items():
            total[name] = total.get(name, 0) + value / batches
    mean = torch.cat([value.flatten() for value in total.values()]).mean()
    return folder, {name: value / mean for name, value in total.items()}


def recipe_of(model_folder, optimization=None, **changes):
    return TrainRecipe(
        ModelSource(str(model_folder)),
        languages=["zh"],
        optimization=Optimization(**SETTINGS, **(optimization or {})),
        watch=Watch(off=True),
        workers=1,
        **changes,
    )


def factor(name):
    """Of the learning rate, in the case of them."""
    if "q_proj" in name:
        return 3.0 if ".0." in name else 0.5
    if name == "lm_head.weight":
        return 0.25
    powers = {"model.embed_tokens": 3, "model.layers.0": 2, "model.layers.1": 1, "model.norm": 0}
    return 0.5 ** next(power for start, power in powers.items() if name.startswith(start))


REPLAY = Replay(languages=["en", "es"], share=0.5)
REHEARSE = Rehearse("filled in", share=0.4)
CASES = {
    "plain": ({}, {}),
    "region": ({"region": "entries"}, {}),
    "clamp": ({"region": "entries", "freeze": Freezing(clamp=0.0)}, {"clamp": 0.0}),
    "rows and columns": ({"region": "rows and columns"}, {}),
    "vocabulary": ({"region": "vocabulary"}, {}),
    "EWC": ({"penalty": Penalty(2.0, "fisher")}, {"strength": 2.0, "fisher": "fisher"}),
    "EWC, region": (
        {"penalty": Penalty(2.0, "fisher"), "region": "entries"},
        {"strength": 2.0, "fisher": "fisher"},
    ),
    "L2": ({"penalty": Penalty(2.0)}, {"strength": 2.0}),
    # What is frozen away from the base is not pulled there.
    "L2, clamp": (
        {"penalty": Penalty(2.0), "region": "entries", "freeze": Freezing(clamp=0.25)},
        {"strength": 2.0, "clamp": 0.25},
    ),
    "L2, frozen later": (
        {"penalty": Penalty(2.0), "region": "entries", "freeze": Freezing(first_step=2)},
        {"strength": 2.0, "first": 2},
    ),
    "pull": ({"pull": Pull(40.0)}, {}),
    "pull, region": ({"pull": Pull(40.0), "region": "entries"}, {}),
    "pull, clamp": (
        {"pull": Pull(40.0), "region": "entries", "freeze": Freezing(clamp=0.25)},
        {"clamp": 0.25},
    ),
    "pull by regions": (
        {"pull": Pull(20.0, {"vocabulary": 2.0, "entries": 400.0})},
        {},
    ),
    "pull by fisher": ({"pull": Pull(40.0, fisher="fisher")}, {}),
    # Each optimizer beside a frozen region and a pull, which goes by each group's learning rate.
    **{
        f"{name}, region, pull": (
            {"optimization": {"optimizer": name}, "region": "entries", "pull": Pull(40.0)},
            {"optimizer": name},
        )
        for name in NAMED
    },
    "learning rates, region, pull": (
        {
            "optimization": {
                "learning_rate_factors": {"*.0.*q_proj*": 3.0, "*q_proj*": 0.5, "lm_head*": 0.25},
                "layer_decay": 0.5,
            },
            "region": "vocabulary",
            "pull": Pull(40.0),
        },
        {"factor": factor},
    ),
    "EMA": ({"optimization": {"ema_decay": 0.8}}, {"ema": 0.8}),
    "averaged": ({"average_with_base": 0.4}, {"share": 0.4}),
    "averaged, region": ({"average_with_base": 0.4, "region": "entries"}, {"share": 0.4}),
    "LoRA": ({"lora": Lora(4)}, {"adapters": MATRICES, "scale": 2.0}),
    "LoRA of some": (
        {"lora": Lora(2, alpha=3.0, targets=["q_proj", "mlp.down_proj"])},
        {"adapters": ("q_proj", "down_proj"), "scale": 1.5},
    ),
    "replay": ({"replay": REPLAY}, {}),
    "replay first": ({"replay": replace(REPLAY, until=0.1)}, {}),
    "region, replay": ({"region": "entries", "replay": REPLAY}, {}),
    "rehearse": ({"rehearse": REHEARSE}, {}),
    "rehearse, next token": ({"rehearse": replace(REHEARSE, loss="next_token")}, {}),
    "rehearse, whole": ({"rehearse": replace(REHEARSE, teacher="model")}, {}),
    "rehearse, region, replay, L2": (
        {
            "rehearse": replace(REHEARSE, until=0.5),
            "region": "entries",
            "replay": replace(REPLAY, share=0.3),
            "penalty": Penalty(2.0),
        },
        {"strength": 2.0},
    ),
    "rehearse, LoRA": (
        {"lora": Lora(4), "rehearse": REHEARSE},
        {"adapters": MATRICES, "scale": 2.0},
    ),
}  # fmt: skip


def strengths(strength, by_region, importance, name, weights):
    """The pull's strength at each weight of a parameter; of several regions the largest."""
    at = torch.full_like(weights, strength)
    if importance is not None:
        return at * importance.get(name, torch.zeros_like(at))
    for number, (region, own) in enumerate(by_region):
        if name in region:
            others = [r[name] for r, more in by_region[:number] if name in r and more > own]
            mask = region[name].clone()
            for other in others:
                mask &= ~other
            at[mask] = own
    return at


@pytest.fixture(scope="module")
def rehearsed(model_folder, make_model, tmp_path_factory):
    """Sequences that are longer than those of the run, as long and shorter.

    Another model than the base says what follows, whose KL is not zero at first: of gradients that
    are noise AdamW makes steps of full length.
    """
    folder = tmp_path_factory.mktemp("rehearsal")
    other = make_model(seed=7, initializer_range=0.2)
    return str(rehearse(folder, model_folder, [20, 16, 5, 9, 16, 1], model=other))


@pytest.fixture(scope="module")
def filled(model_folder, region_files, masks, fisher, rehearsed):
    """A case's recipe and variant, with what they name filled in."""

    def fill(case, **more):
        changes, variant = ({**part} for part in CASES[case])
        if "region" in changes:
            variant["frozen"] = masks[changes["region"]]
            changes["region"] = str(region_files / f"{changes['region']}.safetensors")
        if "pull" in changes:
            pull = changes["pull"]
            files = {str(region_files / f"{n}.safetensors"): v for n, v in pull.regions.items()}
            folder = str(fisher[0]) if pull.fisher else None
            changes["pull"] = replace(pull, regions=files, fisher=folder)
            by_region = [(masks[n], strength) for n, strength in pull.regions.items()]
            importance = fisher[1] if pull.fisher else None
            variant["pull"] = partial(strengths, pull.strength, by_region, importance)
        if "fisher" in variant:
            variant["fisher"] = fisher[1]
            changes["penalty"] = Penalty(changes["penalty"].strength, str(fisher[0]))
        if "rehearse" in changes:
            changes["rehearse"] = replace(changes["rehearse"], folder=rehearsed)
        recipe = recipe_of(model_folder, **changes, **more)
        if "adapters" in variant:
            drawn = {
                name.replace("lora_A.default.", ""): p.detach().clone()
                for name, p in loader(recipe, "one").named_parameters()
                if "lora_A" in name and name.split(".")[-4] in variant["adapters"]
            }
            assert len(drawn) == 2 * len(variant["adapters"])
            variant["adapters"] = drawn
        return recipe, Variant(**variant)

    return fill


def reference(recipe, variant, model_folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    data = read_data(recipe, tokenizer, rehearsal=rehearsal_of(recipe))
    return train(model, data.train_dataloader(), variant)


@pytest.fixture(scope="module")
def plain(filled, model_folder, tokenizer):
    return reference(*filled("plain"), model_folder, tokenizer)


def exported(folder):
    held = WeightsFolder(folder / "model")
    return {name: held[name] for name in held}


@pytest.mark.parametrize(
    "case",
    [  # bitsandbytes comes along with the exhaustive tests alone
        pytest.param(case, marks=pytest.mark.exhaustive) if "8bit" in case else case
        for case in CASES
    ],
)
def test_trains_as_a_plain_loop(
    case, filled, plain, parameters, make_model, model_folder, tokenizer, tmp_path, monkeypatch
):
    recipe, variant = filled(case)
    if case == "rehearse, whole":
        held = teacher_of(recipe).state_dict()
        assert all(torch.equal(held[name], value) for name, value in parameters.items())
        other = make_model(
            seed=7, initializer_range=0.2
        )  # as in the folder: the base's own KL is zero at first
        monkeypatch.setattr("freezetrain.training.train.teacher_of", lambda _: other)
        variant.teacher = other.state_dict()
    if variant.optimizer == "muon":  # whose products are in bfloat16, which rounds much
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    run(recipe, tmp_path / "run", table=False, progress=False)
    actual, expected = (
        exported(tmp_path / "run"),
        reference(recipe, variant, model_folder, tokenizer),
    )
    assert actual.keys() == expected.keys() == parameters.keys()
    # AdamW makes much of what rounds in a small gradient, of which each case has one or a few.
    close = 5e-5 if case == "rehearse, whole" else 2e-5
    for name, value in expected.items():
        if variant.optimizer == "adamw-8bit":
            # The moments of both large matrices are rounded, which the others feel.
            off, moved = (actual[name] - value).norm(), (value - parameters[name]).norm()
            assert (0.01 if value.numel() >= 4096 else 0) * moved < off < 0.1 * moved, name
            continue
        torch.testing.assert_close(
            actual[name], value, atol=close, rtol=1e-5, msg=lambda m, n=name: n + m
        )
    for name, mask in variant.frozen.items() if not variant.first else ():
        start = torch.full_like(parameters[name], variant.clamp or 0.0)
        start = parameters[name] if variant.clamp is None else start
        assert torch.equal(actual[name][mask].view(torch.int32), start[mask].view(torch.int32))
    unlike = max((expected[name] - value).abs().max().item() for name, value in plain.items())
    assert (unlike > 1e-3) == (case != "plain")


@pytest.mark.parametrize(
    "case",
    [
        "EWC",
        "pull",
        "EMA",
        "averaged",
        "rehearse",
        pytest.param("LoRA", marks=pytest.mark.exhaustive),  # peft's imports take long
        *(
            pytest.param(f"{name}, region, pull", marks=pytest.mark.exhaustive)
            for name in (*NAMED, "learning rates")
        ),
    ],
)
def test_resumes_exactly(case, filled, tmp_path, monkeypatch):
    more = {"checkpoint_every": 2}
    if case == "LoRA":
        more["lora"] = Lora(4, dropout=0.2)
    recipe = replace(filled(case)[0], **more)
    run(recipe, tmp_path / "whole", table=False, progress=False)
    before = CausalLM.on_train_batch_start

    def dies(module, batch, batch_idx):
        if batch_idx == 3 * ACCUMULATE:
            raise KeyError("the machine")
        before(module, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "on_train_batch_start", dies)
    with pytest.raises(KeyError, match="the machine"):
        run(recipe, tmp_path / "run", table=False, progress=False)
    monkeypatch.setattr(CausalLM, "on_train_batch_start", before)
    results = run(recipe, tmp_path / "run", table=False, progress=False).results
    assert results["resumed_from"] == "step=2.ckpt"
    expected, actual = exported(tmp_path / "whole"), exported(tmp_path / "run")
    assert all(torch.equal(actual[name], value) for name, value in expected.items())
    shutil.rmtree(tmp_path / "run" / "model")  # killed as it was to be exported
    run(recipe, tmp_path / "run", table=False, progress=False)
    again = exported(tmp_path / "run")
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_replay_is_where_it_is_told(filled, tokenizer):
    """In the batches that all compare: half of them, and half of the first step's alone."""
    counts = {}
    for case in ("plain", "replay", "replay first"):
        data = read_data(filled(case)[0], tokenizer)
        languages = data.order.places(0, data.order.length)[0]
        zh = data.order.languages.index("zh")
        counts[case] = [int((part != zh).sum()) for part in np.split(languages, STEPS)]
    assert (counts["plain"], counts["replay first"]) == ([0] * 4, [3, 0, 0, 0])
    assert sum(counts["replay"]) == 12
    assert min(counts["replay"]) > 0


def test_says_nothing_where_no_progress_is_asked_for(filled, tmp_path, capfd):
    run(filled("plain")[0], tmp_path / "run", table=False, progress=False)
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")
