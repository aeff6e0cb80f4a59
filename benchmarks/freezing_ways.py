"""Ways to train one model, with and without a region frozen: what the benchmarks of freezing share.

A way is a model with an optimizer and whatever hooks freezing registers with them. Ways that take
turns are twins: their parameters, gradients' places and moments are the same memory, so that
neither what a way left in the caches nor where its tensors happen to lie tells them apart, and a
GPU need not hold them all. That wants a learning rate at which no weight moves: the optimizer
computes the same, and an audit finds its frozen entries as they were.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM

from freezetrain.freezing import Freeze, Pull, freeze, pull
from freezetrain.regions import Region
from freezetrain.regions.entries import draw_indices

RATE = 1e-25
"""Learning rate; times any weight's update it is less than half of the last bit of that weight."""


def llama(device: str, **sizes: int) -> LlamaForCausalLM:
    """A Llama of random weights with heads of 64: fp32, on a GPU bf16."""
    width = sizes["hidden_size"]
    heads = max(1, width // 64)
    config = LlamaConfig(num_attention_heads=heads, num_key_value_heads=heads, **sizes)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    return model.to(device, torch.bfloat16 if device == "cuda" else torch.float32)


def matrices(model: nn.Module) -> list[str]:
    """Names of the matrices in ``model``'s lists of layers."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and ("." + name).rpartition(".layers.")[1]
    ]


def elements(model: nn.Module, ratio: float) -> Region:
    """``ratio`` of the entries of each matrix, at random."""
    return Region.random(model, ratio, seed=0, parameters=matrices(model))


def columns(model: nn.Module) -> Region:
    """Half of the columns of each matrix, at random."""
    shapes = {name: model.get_parameter(name).shape for name in matrices(model)}
    return Region.columns(
        model,
        {name: draw_indices(wide, wide // 2, 0, name) for name, (_, wide) in shapes.items()},
    )


def tensors(model: nn.Module) -> Region:
    """Every other matrix, whole."""
    return Region.tensors(model, matrices(model)[::2])


# Other ways to freeze entries, small and faithful to how they were published. Each takes a model
# and dense bool masks (parameter name -> True where frozen, of the parameter's shape), and returns
# a function to call after each micro-step's backward and the optimizer's step, as its authors do.


def no_freezing(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """Plain training."""
    return lambda: None


def restore(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """The paper's script (arXiv 2402.14700): put the values back after each micro-step.

    It keeps a dense mask (1 byte a parameter) and the saved values, zero elsewhere, in 16 bits
    (2 bytes) there, in the weights' dtype here.
    """
    held = []
    for name, parameter in model.named_parameters():
        if name in masks:
            mask = masks[name]
            held.append((parameter, mask, parameter.detach() * mask))

    @torch.no_grad()
    def after() -> None:
        for parameter, mask, saved in held:
            parameter.mul_(~mask)
            parameter.add_(saved)

    return after


def dense_hook(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """``register_hook(lambda g: g * mask)``, the mask 0 where frozen, in the gradient's dtype."""
    for name, parameter in model.named_parameters():
        if name in masks:
            keep = (~masks[name]).to(parameter.dtype)
            parameter.register_hook(lambda gradient, keep=keep: gradient * keep)
    return lambda: None


def masked_fill_hook(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[], None]:
    """SSU's (arXiv 2512.04844): a hook that fills the frozen entries of a gradient with zeros."""
    for name, parameter in model.named_parameters():
        if name in masks:
            mask = masks[name]
            parameter.register_hook(lambda gradient, mask=mask: gradient.masked_fill(mask, 0))
    return lambda: None


NONE = "no freezing"
MAIN = "1% of the entries"
AUDITED = "1%, audited at each step"
ELEMENTS = {
    "0.1% of the entries": 0.001,
    MAIN: 0.01,
    "5% of the entries": 0.05,
    "20% of the entries": 0.2,
}
REGIONS: dict[str, Callable[[nn.Module], Region]] = {
    **{name: partial(elements, ratio=ratio) for name, ratio in ELEMENTS.items()},
    "50% of the columns": columns,
    "half of the matrices": tensors,
}
"""What freezetrain freezes, by way."""
RESTORE = "restore, 1%"
COMPETITORS = {
    RESTORE: restore,
    "dense hook, 1%": dense_hook,
    "masked_fill hook, 1%": masked_fill_hook,
}
WAYS = (NONE, *REGIONS, AUDITED, *COMPETITORS)
PULL = "pull"
BOTH = "pull, and 1% of the entries frozen"
WIDE = "pull to a base in fp32"
WEIGHED = "pull, weighed by an importance"
BY_REGION = "pull, half of the columns stronger"
PULLS = (PULL, BOTH, WIDE, WEIGHED, BY_REGION)
"""The base is of values that 16 bits hold, as most are stored, but for the one in fp32."""


@dataclass(eq=False)
class Way:
    """A model to train, and how a step of it ends."""

    model: nn.Module
    optimizer: AdamW
    after: Callable[[], None] = lambda: None
    """Called after each micro-step's backward, that of the last one after the optimizer's step."""
    handle: Freeze | None = None
    """Where freezetrain freezes."""
    count: int = 0
    """Frozen entries."""
    pull: Pull | None = None


def adamw(model: nn.Module, rate: float = RATE) -> AdamW:
    """Fused, with a decay that moves weights whose gradient is zero."""
    return AdamW(model.parameters(), lr=rate, weight_decay=0.1, fused=True)


def apply(name: str, way: Way, audit_every: int = 0) -> Way:
    """Have ``way``, which freezes nothing yet, freeze as ``name`` says."""
    if name in PULLS:
        way.pull = pulled(name, way)
    if name == NONE or (name in PULLS and name != BOTH):
        return way
    region = REGIONS.get(name, REGIONS[MAIN])(way.model)
    way.count = region.count
    if name in COMPETITORS:
        device = next(way.model.parameters()).device
        masks = {key: mask.to(device) for key, mask in region.masks().items()}
        way.after = COMPETITORS[name](way.model, masks)
    else:
        every = 1 if name == AUDITED else audit_every
        way.handle = freeze(way.model, way.optimizer, region, audit_every=every)
    return way


def pulled(name: str, way: Way) -> Pull:
    """The pull that ``name`` says; at the learning rate of twins it moves nothing."""
    values = {key: value.detach() for key, value in way.model.named_parameters()}
    return pull(
        way.model,
        way.optimizer,
        20.0,
        base=values if name == WIDE else {k: v.bfloat16().to(v) for k, v in values.items()},
        regions=[(columns(way.model), 100.0)] if name == BY_REGION else (),
        importance={k: torch.ones_like(v) for k, v in values.items()} if name == WEIGHED else None,
    )


def twins(names: Sequence[str], model: nn.Module, optimizer: AdamW) -> dict[str, Way]:
    """A way for each name, all in the memory of ``model`` and of ``optimizer``'s moments.

    ``optimizer`` has made a step with all parameters.
    """
    ways = {}
    for name in names:
        own: dict[int, object] = {
            id(parameter): nn.Parameter(parameter.detach()) for parameter in model.parameters()
        }
        pairs = [
            (own[id(parameter)], optimizer.state[parameter]) for parameter in model.parameters()
        ]
        # With its parameters known, it copies the modules around them.
        way = Way(copy := deepcopy(model, own), adamw(copy))
        for parameter, state in pairs:
            way.optimizer.state[parameter] = {**state, "step": state["step"].clone()}
        ways[name] = apply(name, way)
    return ways


def step(way: Way, batches: Sequence[Tensor], before: Callable[[], object] = bool) -> None:
    """A training step on token ids [B, L], one micro-step each. ``before`` the optimizer's step."""
    way.optimizer.zero_grad()
    for number, ids in enumerate(batches, 1):
        loss = way.model(input_ids=ids, labels=ids, use_cache=False).loss
        (loss / len(batches)).backward()
        if number == len(batches):
            nn.utils.clip_grad_norm_(way.model.parameters(), 1.0)
            before()
            way.optimizer.step()
        way.after()


def ids_of(model: nn.Module, count: int, shape: tuple[int, int]) -> list[Tensor]:
    """``count`` batches of random token ids of ``shape``, on the model's device."""
    source = torch.Generator().manual_seed(1)
    device = next(model.parameters()).device
    vocabulary = model.config.vocab_size
    return [torch.randint(vocabulary, shape, generator=source).to(device) for _ in range(count)]


def touched(region: Region, item: int, line: int) -> dict[str, int]:
    """Bytes that any freeze of ``region`` moves in a step, with values of ``item`` bytes.

    Memory moves in lines of ``line`` bytes. Of each line with a frozen entry: the gradient's is
    read and written, the value's is read before the optimizer's step and read and written after
    it. Where the entries are is read in each of these three passes. That the saved values are
    written and read is left out: of a few entries they may stay in a cache.
    """
    lines = 0
    for entries in region.values():
        at = entries.indices() // (line // item)
        lines += len(at.unique_consecutive())
    return {"lines": lines, "bytes": 5 * line * lines + 3 * region.nbytes}
