"""How a model is trained: steps, micro-batches, and what is refused."""

import pytest

from freezetrain.errors import UserError
from freezetrain.recipe.optimization import Engine, Optimization


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        (Optimization, {"max_steps": 1, "max_tokens": 1}, "max_tokens must be left out"),
        (Optimization, {"batch_tokens": 100}, r"a multiple of .* 4096, got 100"),
        (Optimization, {"spike_factor": 1.0}, "spike_factor must be above 1"),
        (Optimization, {"learning_rate": 0.0}, "learning_rate must be a number above 0"),
        (Optimization, {"seed": -1}, r"seed must be from 0 to 2\*\*32 - 1, got -1"),
        (Engine, {"offload": "optimizer"}, "offload must be none unless under zero"),
        (Engine, {"kind": "zero-2", "offload": "all"}, "offload must be none or optimizer"),
        (Engine, {"deepspeed": {"a": 1}}, "deepspeed must be left out"),
        (Engine, {"kind": "ddp", "replicas": 2}, "replicas must be 1 or more, and 1 unless under"),
        (Engine, {"kind": "fsdp2", "replicas": 0}, "replicas must be 1 or more"),
    ],
)
def test_refused(kind, fields, complaint):
    with pytest.raises(UserError, match=complaint):
        kind(**fields)


def test_micro_batches_that_do_not_divide_a_step():
    with pytest.raises(UserError, match="2 devices"):
        Optimization(micro_batch=3, batch_tokens=3 * 512).accumulate(2)


def test_steps_by_steps_by_tokens_or_one_pass():
    sizes = {"sequence_length": 10, "micro_batch": 2, "batch_tokens": 40}
    assert Optimization(max_steps=7, **sizes).steps(1000) == 7
    assert Optimization(max_tokens=401, **sizes).steps(1000) == 11
    assert Optimization(**sizes).steps(1001) == 251
    assert Optimization(**sizes).steps(1) == 1


@pytest.mark.parametrize(("world", "accumulate"), [(1, 8), (2, 4), (8, 1)])
def test_a_step_is_the_same_on_any_number_of_devices(world, accumulate):
    settings = Optimization(sequence_length=10, micro_batch=2, batch_tokens=160)
    assert settings.accumulate(world) == accumulate
