"""The gradient mask: what would go wrong without it, and what it refuses."""

import pytest
import torch
from frozen_reference import (
    Constants,
    TinyLM,
    adamw,
    assert_same_training,
    loss_of,
    mixed_region,
    steps_of_batches,
    train,
    whole_shards,
)
from torch import Tensor, nn

from freezetrain.errors import UserError
from freezetrain.freezing import freeze
from freezetrain.freezing.hooks import StepGuard
from freezetrain.regions import Region


def test_without_the_mask_frozen_gradients_count_in_the_norm() -> None:
    model, steps = TinyLM(), steps_of_batches()
    region = mixed_region(model)
    reference = Constants(TinyLM(), region)
    parameters = reference.parameters()
    expected = train(reference, parameters, adamw(parameters), steps)
    optimizer = adamw(model.parameters())
    StepGuard([optimizer], [optimizer], whole_shards(model, region))
    norms = train(model, list(model.parameters()), optimizer, steps)
    assert norms[0] > 1.03 * expected[0]
    with pytest.raises(AssertionError):
        assert_same_training(model, reference)


def test_mask_comes_before_hooks_that_were_there_first() -> None:
    model, seen = TinyLM(), []
    model.up.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    region = Region.rows(model, {"up.weight": [3]})
    freeze(model, adamw(model.parameters()), region)
    (batch,) = steps_of_batches(1, 1)[0]
    loss_of(model(batch), batch).backward()
    assert not seen[0][3].any()
    assert seen[0][[0, 1, 2]].all()


def test_gradient_memory_shared_with_another_node_is_not_written() -> None:
    """Autograd gives ``position.grad`` memory from which the gradient of ``weight`` is yet to be
    computed; a mask that wrote there in place would zero that too."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 3))
            self.position = nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return ((x @ self.weight + self.position.unsqueeze(0)) * torch.arange(3.0)).sum()

    model, x = Positions(), torch.tensor([[1.0, 2.0, 3.0]])
    freeze(model, torch.optim.SGD(model.parameters()), Region.tensors(model, ["position"]))
    for micro_step in (1, 2):
        model(x).backward()
        assert torch.equal(model.weight.grad, micro_step * x.T @ torch.arange(3.0)[None])
        assert not model.position.grad.any()


def test_gradient_buffer_of_the_caller_stays_the_callers() -> None:
    """``.grad`` as views of one flat buffer, which the caller zeroes and clips as a whole."""
    model, reference = TinyLM(), TinyLM()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    region = mixed_region(model)
    freeze(model, optimizer, region)
    masks = region.masks()
    parameters = list(model.parameters())
    flat = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
    for parameter, part in zip(
        parameters, flat.split([p.numel() for p in parameters]), strict=True
    ):
        parameter.grad = part.view_as(parameter)
    for micro_steps in steps_of_batches(3):
        flat.zero_()
        plain.zero_grad()
        for batch in micro_steps:
            loss_of(model(batch), batch).backward()
            loss_of(reference(batch), batch).backward()
        for name, mask in masks.items():
            reference.get_parameter(name).grad[mask] = 0.0
        assert flat.norm() > 0
        flat.mul_(0.5)
        for parameter in reference.parameters():
            parameter.grad.mul_(0.5)
        optimizer.step()
        plain.step()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_parameter_that_is_unfrozen_later_is_masked() -> None:
    model = TinyLM()
    region = mixed_region(model)
    model.up.weight.requires_grad_(False)
    rest = [p for p in model.parameters() if p.requires_grad]
    optimizer = adamw(rest)
    with freeze(model, optimizer, region):
        assert not model.up.weight.requires_grad
        train(model, list(model.parameters()), optimizer, steps_of_batches(1))
        model.up.weight.requires_grad_(True)
        optimizer.add_param_group({"params": [model.up.weight]})
        before = model.up.weight.detach().clone()
        train(model, list(model.parameters()), optimizer, steps_of_batches(2))
    frozen = region.masks()["up.weight"]
    assert torch.equal(model.up.weight[frozen], before[frozen])
    assert not torch.equal(model.up.weight, before)


class Scaled(nn.Module):
    """With a scalar parameter: there a hook that Dynamo traced was seen to mask nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TinyLM()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids) * self.scale


@pytest.mark.parametrize("compiled_autograd", [False, True])
def test_backward_inside_a_compiled_function(compiled_autograd: bool) -> None:
    """The first step runs eagerly, so that the hooks are met by Dynamo when gradients exist."""
    model = Scaled()
    region = Region.tensors(model, ["scale"]) | Region.rows(model, {"inner.up.weight": [3]})
    optimizer = adamw(model.parameters())
    freeze(model, optimizer, region)
    torch._dynamo.reset()

    def backward(ids: Tensor) -> None:
        loss_of(model(ids), ids).backward()

    compiled = torch.compile(backward, backend="aot_eager")
    masks = region.masks()
    with torch._dynamo.config.patch(compiled_autograd=compiled_autograd):
        for number, (batch,) in enumerate(steps_of_batches(4, 1)):
            optimizer.zero_grad()
            (compiled if number else backward)(batch)
            for name, mask in masks.items():
                assert not model.get_parameter(name).grad[mask].any(), name
            optimizer.step()


def test_unused_parameter_with_zero_gradient_is_fine() -> None:
    model = TinyLM()
    optimizer = adamw(model.parameters())
    freeze(model, optimizer, mixed_region(model), audit_every=1)
    (batch,) = steps_of_batches(1, 1)[0]
    for forward in (model, lambda ids: model.head(model.embedding(ids)), model):
        optimizer.zero_grad(set_to_none=False)
        loss_of(forward(batch), batch).backward()
        optimizer.step()


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    freeze(embedding, torch.optim.SGD(embedding.parameters()), Region.tensors(embedding, ["*"]))
    with pytest.raises(UserError, match="sparse=False"):
        embedding(torch.tensor([1, 2])).sum().backward()


@pytest.mark.filterwarnings("ignore:Using backward")
def test_second_derivatives_through_grad_are_refused() -> None:
    model = nn.Linear(2, 1)
    freeze(model, torch.optim.SGD(model.parameters()), Region.tensors(model, ["weight"]))
    with pytest.raises(UserError, match="create_graph"):
        (model(torch.ones(2)) ** 2).backward(create_graph=True)
