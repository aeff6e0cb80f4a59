"""One of two ranks is killed with SIGKILL; both go on from the last complete checkpoint."""

import io
import json
import os
import signal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from forked_ranks import RanksError, run_ranks
from frozen_reference import TinyLM, uneven_region
from torch import Tensor

from freezetrain.freezing import compare_weights, freeze

pytest.importorskip("deepspeed")

STEPS, SAVE_EVERY, KILLED = 8, 2, 5  # rank 1 is killed in step 5, or in the save after it
COMPLETE = 4  # steps of the last checkpoint that both ranks wrote


def train(
    rank: int, world: int, engine: str, folder: Path, attempt: str, fatal: str = ""
) -> dict[str, Tensor]:
    """From the last complete checkpoint, if there is one, to the end; or to the ``fatal`` moment.

    Returns the exported weights.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from tiny_engines import Trained

    trained = Trained(engine, "fp32")
    complete, first = folder / "complete", 0
    region = uneven_region(TinyLM())
    if complete.exists():
        _, client = trained.model.load_checkpoint(folder, tag=complete.read_text())
        handle = freeze(trained.model, None, region, check_base=False, audit_every=2)
        first = client["step"]
        assert handle.digest == client["digest"]
    else:
        handle = freeze(trained.model, None, region, audit_every=2)
    for step in range(first, STEPS):
        if fatal and rank == 1 and step == KILLED:
            die_in(fatal, trained.model)
        (loss,) = trained.train(step, step + 1)
        with (folder / f"losses {attempt} {rank}").open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, loss]) + "\n")
        if not (step + 1) % SAVE_EVERY:
            handle.verify()
            state = {"step": step + 1, "digest": handle.digest}
            trained.model.save_checkpoint(folder, f"step {step + 1}", state, save_latest=False)
            # All ranks have written by now. DeepSpeed's own "latest" is written before that.
            if not rank:
                complete.with_suffix(".new").write_text(f"step {step + 1}", encoding="utf-8")
                complete.with_suffix(".new").replace(complete)
    weights = get_fp32_state_dict_from_zero_checkpoint(folder, tag=f"step {STEPS}")
    return {name: value.clone() for name, value in weights.items() if name != "head.weight"}


def die_in(moment: str, engine: Any) -> None:
    """Have this rank killed in its "backward" pass, its "step" or half-way through its "save"."""

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "backward":
        next(engine.module.parameters()).register_hook(die)
    elif moment == "step":
        engine.optimizer.optimizer.register_step_pre_hook(die)
    else:

        def half(content: Any, path: str, **options: Any) -> None:
            whole = io.BytesIO()
            save(content, whole, **options)
            Path(path).write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
            die()

        save = torch.save
        patch.object(torch, "save", half).start()


def losses(folder: Path, attempt: str, rank: int) -> dict[int, float]:
    lines = (folder / f"losses {attempt} {rank}").read_text().splitlines()
    return dict(json.loads(line) for line in lines)


@pytest.mark.parametrize(
    ("engine", "moment"),
    [
        ("ZeRO-2", "save"),
        ("ZeRO-3", "step"),
        pytest.param("ZeRO-2", "backward", marks=pytest.mark.exhaustive),
        pytest.param("ZeRO-2", "step", marks=pytest.mark.exhaustive),
        pytest.param("ZeRO-3", "backward", marks=pytest.mark.exhaustive),
        pytest.param("ZeRO-3", "save", marks=pytest.mark.exhaustive),
    ],
)
def test_goes_on_as_if_never_killed(tmp_path: Path, engine: str, moment: str) -> None:
    whole, here = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    here.mkdir()
    expected, _ = run_ranks(train, engine, whole, "whole")
    with pytest.raises(RanksError) as raised:
        run_ranks(train, engine, here, "killed", moment)
    assert raised.value.codes[1] == -signal.SIGKILL
    half = ["step 6"] if moment == "save" else []
    assert (here / "complete").read_text() == f"step {COMPLETE}"
    assert sorted(p.name for p in here.glob("step *")) == ["step 2", "step 4", *half]

    export, _ = run_ranks(train, engine, here, "resumed")
    uninterrupted = losses(whole, "whole", 0)
    assert list(uninterrupted) == list(range(STEPS))
    killed, resumed = losses(here, "killed", 1), losses(here, "resumed", 1)
    assert list(killed) == list(range(KILLED + (moment == "save")))
    assert list(resumed) == list(range(COMPLETE, STEPS))
    assert uninterrupted | killed | resumed == uninterrupted
    assert all(torch.equal(export[name], value) for name, value in expected.items())
    base = {name: value.detach() for name, value in TinyLM().float().named_parameters()}
    region = uneven_region(TinyLM())
    compared = compare_weights(base, export, region)
    assert (compared.checked, compared.moved) == (region.count, 0)
    assert compared.changed == compared.trainable
