"""A region of the base, frozen in a model that bears PEFT's adapters."""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from freezetrain.cli import main
from freezetrain.errors import CheckError, UserError
from freezetrain.freezing import freeze
from freezetrain.regions import Base, Region, fingerprint
from freezetrain.regions.parameters import all_parameters, match_parameters

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="the extra lora is not installed")


class _Peft:
    """Imports PEFT when it is first used, which takes seconds: not wherever tests are collected."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("peft"), name)


peft = _Peft()

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
    "lm_head.weight",
]


def region_of(model: nn.Module) -> Region:
    drawn = Region.random(model, 0.3, seed=0, parameters=NAMES)
    return Region(drawn, base=Base("tiny", None, fingerprint(model)))


def lora(model: PreTrainedModel) -> nn.Module:
    """LoRA on the matrices, a head and norms that are trained whole, two tokens alone."""
    config = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "down_proj"],
        modules_to_save=["lm_head", "input_layernorm"],
        trainable_token_indices={"embed_tokens": [1, 2]},
    )
    return peft.get_peft_model(model, config)


ADAPTED = {
    "lora": (lora, 3),
    "dora, injected": (
        lambda model: peft.inject_adapter_in_model(
            peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True), model
        ),
        1,
    ),
    "ia3": (
        lambda model: peft.get_peft_model(
            model,
            peft.IA3Config(
                target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]
            ),
        ),
        1,
    ),
    "embedding": (
        lambda model: peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=["embed_tokens", "lm_head"])
        ),
        2,
    ),
    "prompt": (
        lambda model: peft.get_peft_model(
            model, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        ),
        0,
    ),
    "modules to save": (
        lambda model: peft.get_peft_model(
            model, peft.LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["lm_head"])
        ),
        0,
    ),
}


@pytest.mark.parametrize(("adapt", "under"), ADAPTED.values(), ids=ADAPTED.keys())
def test_base_regions_are_frozen_in_adapted_models(adapt, under: int, make_model, caplog) -> None:
    base = make_model()
    region = region_of(base)
    before = {name: value.detach().clone() for name, value in base.named_parameters()}
    model = adapt(base)
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    with caplog.at_level(logging.INFO, "freezetrain"):
        handle = freeze(model, optimizer, region, audit_every=1)
    (record,) = caplog.records
    assert record.getMessage() == handle.description
    merging = f"adapters add to {under} of its 4 parameters: merging them into the model would move"
    assert (merging in handle.description) == bool(under)
    assert record.levelno == (logging.WARNING if under else logging.INFO)
    for seed in range(3):
        ids = torch.randint(400, (2, 8), generator=torch.Generator().manual_seed(seed))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert handle.verify() == handle.count == region.count
    assert any(not torch.equal(p, old) for p, old in zip(trained, start, strict=True))
    parameters = all_parameters(model)
    prefix = "" if adapt is ADAPTED["dora, injected"][0] else "base_model.model."
    prefix = "base_model." if adapt is ADAPTED["prompt"][0] else prefix
    for name, mask in region.masks().items():
        now = parameters[prefix + name]
        assert torch.equal(now[mask], before[name][mask])
        assert now.requires_grad == (
            name == "lm_head.weight" and "lm_head.modules" in str(model.state_dict().keys())
        )
        assert not now.requires_grad or not torch.equal(now[~mask], before[name][~mask])


def test_merging_while_frozen_is_found_out(make_model) -> None:
    base = make_model()
    region = region_of(base)
    model = lora(base)
    trained = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.1)
    handle = freeze(model, torch.optim.AdamW(trained), region, check_base=False)
    model.merge_adapter()
    with pytest.raises(CheckError, match=r"embed_tokens\.\S+ is frozen and changed from"):
        handle.verify()


def test_names_in_adapted_models(make_model) -> None:
    base = make_model()
    region = region_of(base)
    model = lora(base)
    known = match_parameters(model, ["*.q_proj.weight", "*lm_head.weight"])
    assert list(known) == [
        f"base_model.model.{name}"
        for name in (NAMES[1], "model.layers.1.self_attn.q_proj.weight", "lm_head.weight")
    ]
    assert known["base_model.model.lm_head.weight"].requires_grad
    # What older files of regions of adapted models call it.
    old = all_parameters(model)[
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    ]
    assert old is known[f"base_model.model.{NAMES[1]}"]
    assert 0 < region.coverage(model).model < 0.3
    region.check_base(model)
    with torch.no_grad():
        model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.add_(1.0)
    with pytest.raises(UserError, match="the region was made for another model"):
        region.check_base(model)
    model.add_adapter(
        "second", peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    )
    with pytest.raises(UserError, match=r"no parameter 'lm_head\.weight'"):  # which is trained?
        region.resolve(model)


def test_a_model_whose_parameters_no_optimizer_holds_is_refused(make_model) -> None:
    base = make_model()
    model, other = lora(base), lora(make_model())
    trained = [p for p in other.parameters() if p.requires_grad]
    with pytest.raises(UserError, match="holds none of the region's parameters"):
        freeze(model, torch.optim.AdamW(trained), Region.tensors(base, ["*k_proj.weight"]))


def test_verify_says_what_a_folder_of_an_adapter_is(
    make_model, model_folder, tmp_path, capsys
) -> None:
    model = make_model()
    region = region_of(model).save(tmp_path / "region.safetensors")
    lora(model).save_pretrained(tmp_path / "adapter")
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "--base", str(model_folder), "--adapted", str(tmp_path / "adapter"),
              "--region", str(region), "--out", str(tmp_path / "out")])  # fmt: skip
    assert stopped.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds an adapter of the model" in said
    assert "merge the two" in said
    assert "merging moves frozen entries of the layers that it adds to" in said
