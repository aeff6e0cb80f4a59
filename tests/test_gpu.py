"""The same promises on a GPU; skipped, and said so, where there is none."""

import pytest
import torch

import freezetrain
from freezetrain.evaluation import Document, evaluate
from freezetrain.regions import Region
from freezetrain.scoring import compute_scores, select

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def on_gpu(make_model):
    return make_model().cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ratio", [0.01, 0.1, 0.3])  # held as indices, bits made indices, bits
def test_frozen_entries_keep_their_bits_under_fused_adamw(on_gpu, dtype, ratio):
    model = on_gpu.to(dtype)
    region = Region.random(model, ratio, seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    with freezetrain.freeze(model, optimizer, region):
        for _ in range(3):
            batch = torch.randint(0, 400, (2, 16), device="cuda")
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, mask in region.masks().items():
        now, mask = model.get_parameter(name), mask.cuda()
        assert torch.equal(now[mask], before[name][mask])
        assert not torch.equal(now, before[name])


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pull_goes_to_the_base_beside_a_freeze(on_gpu, dtype, on_cpu):
    model = on_gpu.to(dtype)
    region = Region.random(model, 0.1, seed=0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    base = {name: (p + 1).cpu() for name, p in before.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    freezetrain.pull(model, optimizer, 5.0, base=base, on_cpu=on_cpu)  # half of the way
    with freezetrain.freeze(model, optimizer, region, check_base=False):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    masks = region.masks()
    for name, now in model.named_parameters():
        expected = before[name] + 0.5
        if name in masks:
            expected = torch.where(masks[name].to(now.device), before[name], expected)
        torch.testing.assert_close(now.detach(), expected)


def test_scores_and_figures_are_those_of_the_cpu(make_model):
    batches = [torch.randint(0, 400, (2, 16), generator=torch.Generator().manual_seed(0))]
    documents = {"en": [Document(batches[0][0].tolist(), 20), Document([0, 5, 9], 4)]}
    regions, nll = [], []
    for device in ("cpu", "cuda"):
        model = make_model().to(device)
        regions.append(select(compute_scores(model, batches), 0.1))
        nll.append(evaluate(model, documents, max_length=16)["en"].nll)
    assert regions[0].jaccard(regions[1]) > 0.95
    assert nll[0] == pytest.approx(nll[1], rel=1e-4)


def test_ablation_puts_back_on_the_gpu(on_gpu):
    before = {name: p.detach().clone() for name, p in on_gpu.named_parameters()}
    with freezetrain.ablate(on_gpu, Region.random(on_gpu, 0.1, seed=0)):
        assert not torch.equal(on_gpu.lm_head.weight, before["lm_head.weight"])
    assert all(torch.equal(p, before[name]) for name, p in on_gpu.named_parameters())
