"""A tiny model, its data, and training in which frozen entries are constants, not parameters."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from freezetrain.freezing.layout import Layout, Shard
from freezetrain.regions import Region

VOCABULARY = 13
MAX_NORM = 0.05  # far below the norms that occur, so that clipping always acts


class TinyLM(nn.Module):
    """Embedding, two matrices, a norm, biases and a tied head, in fp64."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(VOCABULARY, 6)
        self.up = nn.Linear(6, 10)
        self.down = nn.Linear(10, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight
        self.double()

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.embedding(input_ids)
        return self.head(self.norm(hidden + self.down(F.gelu(self.up(hidden)))))


def loss_of(logits: Tensor, input_ids: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), input_ids[:, 1:].flatten())


def steps_of_batches(steps: int = 6, accumulate: int = 2, rows: int = 4) -> list[list[Tensor]]:
    """``steps`` lists of ``accumulate`` micro-batches [rows, 7]."""
    source = torch.Generator().manual_seed(1)
    return [
        [torch.randint(VOCABULARY, (rows, 7), generator=source) for _ in range(accumulate)]
        for _ in range(steps)
    ]


def mixed_region(model: nn.Module) -> Region:
    """Single entries, rows, columns, a whole tensor and packed bits."""
    names = ["embedding.weight", "up.weight", "down.weight", "norm.weight"]
    region = Region.random(model, 0.02, seed=0, parameters=names)
    region |= Region.random(model, 0.5, seed=1, parameters=["up.weight"])
    region |= Region.rows(model, {"embedding.weight": [2, 5]})
    region |= Region.columns(model, {"down.weight": [0, 7]})
    region |= Region.tensors(model, ["down.bias"])
    kinds = {entries.kind for entries in region.values()}
    assert kinds >= {"indices", "bits", "all"}, kinds
    return region


def uneven_region(model: nn.Module) -> Region:
    """Also some of a parameter of 10 entries, of which 3 ranks hold 4, 4 and 2."""
    return mixed_region(model) | Region.random(model, 0.5, seed=2, parameters=["up.bias"])


def adamw(parameters, **options):
    return torch.optim.AdamW(
        parameters, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, **{"foreach": False, **options}
    )


class Constants:
    """The same model with its frozen entries as constants, by functional reparametrization.

    ``flat``: the trainable entries of each parameter are a vector of their own, so that frozen
    ones are in no parameter at all: nothing can reach them, nor can they count in any norm.
    Otherwise the parameter keeps its shape and ``torch.where`` picks the constant in the forward
    pass, for optimizers whose update depends on the shape.
    """

    def __init__(self, model: nn.Module, region: Region, flat: bool = True) -> None:
        self.model = model
        self.flat = flat
        self.constants = {name: p.detach().clone() for name, p in model.named_parameters()}
        masks = {frozen.name: frozen.entries.mask() for frozen in region.resolve(model)}
        self.masks = {
            name: masks.get(name, torch.zeros_like(value, dtype=torch.bool))
            for name, value in self.constants.items()
        }
        self.free = {
            name: nn.Parameter((value[~self.masks[name]] if flat else value).clone())
            for name, value in self.constants.items()
        }

    def parameters(self) -> list[nn.Parameter]:
        return [value for value in self.free.values() if value.numel()]

    def weights(self) -> dict[str, Tensor]:
        if not self.flat:
            return {
                name: torch.where(self.masks[name], constant, self.free[name])
                for name, constant in self.constants.items()
            }
        return {
            name: constant.masked_scatter(~self.masks[name], self.free[name])
            for name, constant in self.constants.items()
        }

    def __call__(self, input_ids: Tensor) -> Tensor:
        return functional_call(self.model, self.weights(), (input_ids,))


def train(
    forward: Callable[[Tensor], Tensor],
    parameters: list[nn.Parameter],
    optimizer: Optimizer,
    steps: list[list[Tensor]],
    closure: bool = False,
    after_step: Callable[[], None] | None = None,
) -> list[Tensor]:
    """Accumulate, clip, step; return the gradient norms before clipping."""
    norms = []

    def gradients(batches: list[Tensor]) -> Tensor:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=torch.float64)
        for input_ids in batches:
            loss = loss_of(forward(input_ids), input_ids) / len(batches)
            loss.backward()
            total += loss.detach()
        norms.append(nn.utils.clip_grad_norm_(parameters, MAX_NORM))
        return total

    for batches in steps:
        if closure:
            optimizer.step(partial(gradients, batches))
        else:
            gradients(batches)
            optimizer.step()
        if after_step is not None:
            after_step()
    return norms


def assert_same_training(model: nn.Module, reference: Constants) -> None:
    """Frozen entries equal to the last bit, all others to rounding, and really trained."""
    expected = reference.weights()
    for name, parameter in model.named_parameters():
        mask, start = reference.masks[name], reference.constants[name]
        assert torch.equal(parameter[mask], start[mask]), name
        torch.testing.assert_close(
            parameter.detach(), expected[name].detach(), rtol=1e-9, atol=1e-11, msg=name
        )
        assert mask.all() or not torch.equal(parameter[~mask], start[~mask]), name


def whole_shards(model: nn.Module, region: Region) -> list[Shard]:
    """The region on one device, as a freeze lays it out."""
    return [Shard.whole(frozen, number) for number, frozen in enumerate(region.resolve(model))]


def flat_layout(
    model: nn.Module,
    region: Region,
    rank: int = 0,
    world: int = 1,
    dtype: torch.dtype = torch.float32,
    shift: int = 0,
) -> Layout:
    """As ZeRO lays a region out: one flat master of all weights, of which each rank has a slice.

    ``shift``: a fault, so many elements that every place in the master is off.
    """
    resolved = region.resolve(model)
    flat = torch.cat([p.detach().flatten().to(dtype) for p in model.parameters()])
    size = -(-len(flat) // world)
    low, high = size * rank, min(size * (rank + 1), len(flat))
    owner = torch.cat([flat[low:high], torch.zeros(2, dtype=dtype)]).requires_grad_()
    numbers = {frozen.name: number for number, frozen in enumerate(resolved)}
    masters, offset = [], 0
    for name, parameter in model.named_parameters():
        start, end = max(offset, low), min(offset + parameter.numel(), high)
        if name in numbers and start < end:
            frozen = resolved[numbers[name]]
            shape, place = (end - start,), start - low + shift
            masters.append(Shard.part(frozen, numbers[name], owner, start - offset, shape, place))
        offset += parameter.numel()
    optimizer = adamw([owner])
    whole = whole_shards(model, region)
    return Layout(
        engine="a flat master",
        optimizers=[optimizer],
        inner=[optimizer],
        gradients=whole,
        masters=masters,
        copies=whole,
        sharded=True,
    )
