"""Each engine trains on 1, 2 and again 1 rank as a plain loop does, watched, and is exported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import freezetrain
from freezetrain.evaluation import Document, evaluate
from freezetrain.nll import token_nll

END, SEQUENCES, LENGTH, EVERY = 6, 4, 12, 2
# Ranks, and the step that they stop at. ZeRO-3 last: it replaces torch's linear.
PHASES = {
    "ddp": [(1, 1), (2, 4), (1, 6)],
    "fsdp2": [(1, 1), (2, 4), (1, 6)],
    "zero-1": [(1, 1), (2, 4)],
    "zero-2": [(1, 1), (2, 4), (1, 6)],
    "zero-3": [(1, 1), (2, 4), (1, 6)],
}


def run_worker(name: str, *arguments: object) -> None:
    """Run the program ``name`` of this folder, which forks ranks."""
    here = Path(__file__).parent
    paths = [Path(freezetrain.__file__).parents[1], here.parent / "freezing"]
    done = subprocess.run(
        [sys.executable, here / name, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]


@pytest.fixture(scope="module")
def data() -> dict:
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(400, (count,), generator=generator).tolist()

    return {
        "engines": PHASES,
        "sequences": SEQUENCES,
        "length": LENGTH,
        "rows": [ids(LENGTH) for _ in range(END * SEQUENCES)],
        # 6 windows, 4 of them of a full length: 2 ranks of 3, and a batch for each
        "documents": {"en": [ids(5), ids(12), ids(9)], "zh": [ids(40)]},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_model, tokenizer, data) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    make_model().save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "data.json").write_text(json.dumps(data))
    run_worker("resumed_fits.py", folder)
    return folder


@pytest.fixture(scope="module")
def reference(make_model, data) -> dict:
    """Step -> weights, and step -> summed NLL of each language, of a plain loop."""
    model = make_model()
    groups: list[list] = [[], []]
    for name, parameter in model.named_parameters():
        groups["norm" in name].append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": groups[0], "weight_decay": 0.1}, {"params": groups[1], "weight_decay": 0.0}],
        lr=1e-2,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    documents = {
        language: [Document(ids, len(ids)) for ids in texts]
        for language, texts in data["documents"].items()
    }
    weights, nll = {}, {}
    for step in range(END + 1):
        figures = evaluate(model, documents, max_length=LENGTH)
        nll[step] = {language: these.nll for language, these in figures.items()}
        weights[step] = {name: p.detach().clone() for name, p in model.named_parameters()}
        rows = torch.tensor(data["rows"][step * SEQUENCES :][:SEQUENCES])
        if step < END:
            token_nll(model(input_ids=rows).logits, rows).mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return {"weights": weights, "nll": nll}


def cells(engines: dict) -> list[tuple[str, int, int]]:
    return [(engine, world, stop) for engine, phases in engines.items() for world, stop in phases]


@pytest.mark.parametrize(("engine", "world", "stop"), cells(PHASES))
def test_other_ranks_go_on_as_a_plain_loop_does(
    folder: Path, reference: dict, engine: str, world: int, stop: int
) -> None:
    model, told = AutoModelForCausalLM.from_pretrained(
        folder / engine / str(stop), output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    for name, expected in reference["weights"][stop].items():
        # Without the optimizer's state they would be 1e-3 apart.
        value = model.get_parameter(name).detach()
        torch.testing.assert_close(value, expected, rtol=0, atol=3e-6, msg=name)


@pytest.mark.parametrize(("engine", "world", "stop"), cells(PHASES))
def test_ranks_see_what_one_process_sees(
    folder: Path, reference: dict, engine: str, world: int, stop: int
) -> None:
    ranks = [json.loads((folder / engine / f"{stop}-{r}.json").read_text()) for r in range(world)]
    assert all(rank["history"] == ranks[0]["history"] for rank in ranks)
    evaluations = ranks[0]["history"]["evaluations"]
    # those of the phases before are kept in the checkpoint
    ends = {end for _, end in PHASES[engine]} | set(range(0, END + 1, EVERY))
    assert [entry["step"] for entry in evaluations] == sorted(e for e in ends if e <= stop)
    for entry in evaluations:
        for language, figures in entry["figures"].items():
            expected = reference["nll"][entry["step"]][language]
            # 1e-6 of what the same weights give; after training they are those to rounding
            assert figures["nll"] == pytest.approx(expected, rel=1e-6)
    assert all(rank["decays"] == [0.1, 0.0] for rank in ranks)


@pytest.mark.parametrize(("engine", "world", "stop"), cells(PHASES))
def test_the_checkpoint_says_who_wrote_it(folder: Path, engine: str, world: int, stop: int) -> None:
    told = json.loads((folder / engine / f"{stop}-0.json").read_text())["checkpoint"]
    last = PHASES[engine][-1][1]
    names = [path.name for path in (folder / engine / "checkpoints").iterdir()]
    assert names == [f"step={last}.ckpt"]
    if engine == "ddp":
        assert told == {}
    else:
        assert (told["step"], told["world"], told["engine"]) == (stop, world, engine)
        assert len(told["files"]) >= world


@pytest.mark.parametrize("engine", PHASES)
def test_export_is_in_shards_of_the_asked_size(folder: Path, engine: str) -> None:
    shards = sorted((folder / engine / "4").glob("*.safetensors"))
    assert len(shards) > 1
    assert all(sum(t.nbytes for t in load_file(shard).values()) <= 25600 for shard in shards)
