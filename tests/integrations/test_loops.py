"""``freezetrain.freeze`` with what Accelerate and Lightning Fabric return, in one process."""

import pytest
from accelerate import Accelerator
from lightning import Fabric
from trainer_loops import accelerate_loop, fabric_loop
from trainer_reference import ACCUMULATE, EPS, Reference, llama, llama_region, weights_of
from watched_texts import check_history, watch

pytestmark = pytest.mark.exhaustive  # test_distributed.py has them on two ranks


@pytest.fixture(scope="module")
def reference() -> Reference:
    model = llama().double()
    return Reference(model, llama_region(model), eps=EPS, decay_norms=True).train()


def test_accelerate(reference: Reference) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    model, norms, verified = accelerate_loop(accelerator, llama().double(), EPS, watched := watch())
    reference.compare(weights_of(accelerator.unwrap_model(model)), rtol=1e-5, atol=1e-7)
    check_history(watched.history, llama().double(), model)
    assert norms == pytest.approx(reference.norms, rel=1e-6)
    assert verified == "984 under one device"


def test_fabric(reference: Reference) -> None:
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    model, norms, verified = fabric_loop(fabric, llama().double(), EPS, watched := watch())
    reference.compare(weights_of(model.module), rtol=1e-5, atol=1e-7)
    check_history(watched.history, llama().double(), model)
    assert norms == pytest.approx(reference.norms, rel=1e-6)
    assert verified == "984 under one device"
