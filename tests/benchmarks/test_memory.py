"""The arithmetic of memory is that of real models, and real commands are measured."""

import pytest
from transformers import AutoModelForCausalLM

from benchmarks import memory
from freezetrain.scoring.methods import scored_parameters


def test_sizes_are_those_of_the_model(tmp_path):
    shape = {**memory.TINY, "num_hidden_layers": 2, "rows": 6144}
    memory.make_model(tmp_path, **shape)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    scored = scored_parameters(model, "taylor", None).values()
    assert memory.sizes(shape) == {
        "weights": model.num_parameters(),
        "scored": sum(parameter.numel() for parameter in scored),
        "largest": 32 * 64,
    }
    assert (tmp_path / "region.safetensors").is_file()


def test_no_command_without_its_name():
    with pytest.raises(SystemExit, match="training"):
        memory.main("elsewhere")


@pytest.mark.exhaustive
def test_a_training_is_measured_beside_its_estimate(tmp_path, monkeypatch):
    larger = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "rows": 16000}
    monkeypatch.setattr(memory, "TRAINED", larger)
    ((case, figures),) = memory.measure_training(tmp_path, "^one$").items()
    assert (case, figures["processes"]) == ("one", 1)
    assert figures["estimated"] > 0
    assert figures["measured"] == pytest.approx(figures["estimated"], rel=0.3)
