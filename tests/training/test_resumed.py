"""Each engine trains on 1, 2 and again 1 rank as a plain loop does, watched, and is exported."""

from pathlib import Path

import pytest
import torch
from forked_ranks import run_ranks
from resumed_fits import fit
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from freezetrain.evaluation import Document, evaluate
from freezetrain.nll import token_nll

END, SEQUENCES, LENGTH, EVERY = 6, 4, 12, 2
# Ranks, and the step that they stop at.
PHASES = {
    "ddp": [(1, 1), (2, 4), (1, 6)],
    "fsdp2": [(1, 1), (2, 4), (1, 6)],
    "zero-1": [(1, 1), (2, 4)],
    "zero-2": [(1, 1), (2, 4), (1, 6)],
    "zero-3": [(1, 1), (2, 4), (1, 6)],
}


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
        nll[step] = {language: each.nll for language, each in figures.items()}
        weights[step] = {name: p.detach().clone() for name, p in model.named_parameters()}
        rows = torch.tensor(data["rows"][step * SEQUENCES :][:SEQUENCES])
        if step < END:
            token_nll(model(input_ids=rows).logits, rows).mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return {"weights": weights, "nll": nll}


@pytest.mark.parametrize(
    "engine",
    [
        "ddp",
        "fsdp2",
        pytest.param("zero-1", marks=pytest.mark.exhaustive),
        "zero-2",
        "zero-3",
    ],
)
def test_other_ranks_go_on_as_a_plain_loop_does(
    tmp_path, make_model, tokenizer, data, reference, engine
):
    make_model().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    folder = tmp_path / engine
    folder.mkdir()
    for world, stop in PHASES[engine]:
        ranks = run_ranks(fit, folder, data, engine, stop, world=world)
        check_weights(folder / f"{stop}", reference["weights"][stop])
        check_evaluations([rank["history"] for rank in ranks], reference["nll"], engine, stop)
        assert all(rank["decays"] == [0.1, 0.0] for rank in ranks)
        names = [path.name for path in (folder / "checkpoints").iterdir()]
        assert names == [f"step={stop}.ckpt"]
        written = ranks[0]["checkpoint"]
        if engine == "ddp":
            assert written is None
        else:
            assert (written["step"], written["world"], written["engine"]) == (stop, world, engine)
            assert len(written["files"]) >= world


def check_weights(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """The exported model, in shards of the size that was asked for."""
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert all(sum(t.nbytes for t in load_file(shard).values()) <= 25600 for shard in shards)
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    for name, value in expected.items():
        # Without the optimizer's state they would be 1e-3 apart.
        trained = model.get_parameter(name).detach()
        torch.testing.assert_close(trained, value, rtol=0, atol=3e-6, msg=name)


def check_evaluations(histories: list[dict], nll: dict, engine: str, stop: int) -> None:
    """All ranks see what one process sees; evaluations before are kept in the checkpoint."""
    assert all(history == histories[0] for history in histories)
    evaluations = histories[0]["evaluations"]
    steps = {end for _, end in PHASES[engine]} | set(range(0, END + 1, EVERY))
    assert [entry["step"] for entry in evaluations] == sorted(
        step for step in steps if step <= stop
    )
    for entry in evaluations:
        for language, figures in entry["figures"].items():
            # 1e-6 of what the same weights give; after training they are those to rounding
            assert figures["nll"] == pytest.approx(nll[entry["step"]][language], rel=1e-6)
