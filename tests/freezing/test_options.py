"""Options of a freeze: the same for every way to freeze, and refused where they cannot work."""

from collections.abc import Callable
from dataclasses import fields
from inspect import signature

import pytest
import torch
from frozen_reference import TinyLM, adamw, mixed_region

from freezetrain.callbacks import RegionFreeze
from freezetrain.errors import UserError
from freezetrain.freezing import FreezeOptions, freeze
from freezetrain.integrations.hf import RegionFreezeCallback

REGION = mixed_region(TinyLM())
MODEL = TinyLM()
WAYS: dict[str, Callable[..., object]] = {
    "freeze": lambda **options: freeze(MODEL, adamw(MODEL.parameters()), REGION, **options),
    "RegionFreeze": lambda **options: RegionFreeze(REGION, **options),
    "RegionFreezeCallback": lambda **options: RegionFreezeCallback(REGION, **options),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_wrong_keyword_is_an_error_that_names_it(way: str) -> None:
    with pytest.raises(TypeError, match="clmap"):
        WAYS[way](clmap=0.0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audit_every": -1}, "audit_every must be 0 or more steps, got -1"),
        ({"clamp": 0.0, "base": {"x": torch.ones(1)}}, "clamp and base both say"),
    ],
)
def test_what_cannot_work_is_refused(way: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        WAYS[way](**options)


def test_callbacks_take_every_option() -> None:
    names = {field.name for field in fields(FreezeOptions)}
    for kind in (RegionFreeze, RegionFreezeCallback):
        assert names | {"region"} <= set(signature(kind).parameters)


def test_a_region_is_loaded_from_its_file(tmp_path) -> None:
    path = REGION.save(tmp_path / "region.safetensors")
    for kind in (RegionFreeze, RegionFreezeCallback):
        assert kind(path).region.digest == kind(str(path)).region.digest == REGION.digest
