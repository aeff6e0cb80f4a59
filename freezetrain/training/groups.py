"""Groups of parameters: which decay, which have a learning rate of their own, which Muon steps."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import nn

from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.optimization import Optimization
from freezetrain.regions import decoder_blocks
from freezetrain.regions.parameters import full_shape, plain_name


@dataclass(frozen=True)
class Group:
    """Parameters that an optimizer treats alike."""

    factor: float
    """Of the learning rate."""
    decays: bool
    """Whether they have weight decay."""
    inner: bool = False
    """Whether they are matrices of the decoder blocks, where those are a group of their own."""
    parameters: list[nn.Parameter] = field(default_factory=list, compare=False)


def parameter_groups(model: nn.Module, settings: Optimization) -> list[Group]:
    """The trainable parameters of ``model``, each in exactly one group.

    Matrices decay. Norms and biases do not: they have few entries and a scale of their own.
    Embeddings do not either: a token that the target language never uses gets no gradient, and
    decay alone would wear its row away, which is forgetting by the optimizer.

    Groups with a factor of 1 come first, then those with larger ones; of equal factor, those that
    decay. So the first group's learning rate is the one that the recipe gives, unless no parameter
    has it. UserError for a pattern that fits no parameter, or none that an earlier one does not.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    named = {plain_name(n): p for n, p in model.named_parameters() if p.requires_grad}
    factors = learning_rate_factors(model, named, settings)
    apart = settings.optimizer == "muon"
    blocks = _blocks(model) if apart else {}
    groups: dict[Group, Group] = {}
    for name, parameter in named.items():
        dimensions = len(full_shape(parameter))  # ZeRO-3 leaves an empty vector of each
        embeds = id(parameter) in embeddings
        inner = apart and dimensions == 2 and not embeds and _block_of(name, blocks) is not None
        group = Group(factors[name], dimensions >= 2 and not embeds, inner)
        groups.setdefault(group, group).parameters.append(parameter)
    return sorted(
        groups.values(),
        key=lambda group: (group.factor != 1, -group.factor, not group.decays, not group.inner),
    )


def learning_rate_factors(
    model: nn.Module, named: Mapping[str, nn.Parameter], settings: Optimization
) -> dict[str, float]:
    """Name -> factor of the learning rate, of each parameter in ``named``.

    The first pattern that fits the name gives it. Without one it is ``layer_decay`` to the power
    of how far the parameter is from the end: 0 for what is outside of the decoder blocks, 1 for
    the last of them, n for the first of n, n + 1 for embeddings (Clark et al. 2020, arXiv
    2003.10555; the powers are those of Bao et al. 2022, arXiv 2106.08254). A head that is tied to
    the embeddings is one with them.
    """
    fitting: dict[str, list[str]] = {pattern: [] for pattern in settings.learning_rate_factors}
    factors = {}
    distances = dict(_distances(model, named)) if settings.layer_decay is not None else {}
    for name in named:
        pattern = next((p for p in fitting if fnmatchcase(name, p)), None)
        if pattern is not None:
            fitting[pattern].append(name)
            factors[name] = settings.learning_rate_factors[pattern]
        else:
            factors[name] = (settings.layer_decay or 1.0) ** distances.get(name, 0)
    for pattern, names in fitting.items():
        if not names:
            _refuse(pattern, named)
    return factors


def _refuse(pattern: str, named: Mapping[str, nn.Parameter]) -> None:
    field = "optimization.learning_rate_factors"
    taken = next((name for name in named if fnmatchcase(name, pattern)), None)
    if taken is not None:
        raise UserError(
            f"{field} has {pattern!r}, whose parameters, first {taken!r}, all fit a pattern that "
            "stands before it, which counts; put it first, or leave it out"
        )
    parts = {".".join(name.split(".")[start:]) for name in named for start in range(8)}
    parts |= {part for name in named for part in name.split(".")}
    misses = near_misses(pattern.strip("*."), parts - {pattern, ""})
    raise UserError(
        f"{field} has {pattern!r}, which fits the name of no trained parameter, as "
        f"{next(iter(named))!r} is one{misses}; * stands for any characters"
    )


def _distances(model: nn.Module, named: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, int]]:
    """Name of a parameter, and how many times ``layer_decay`` is taken."""
    blocks = _blocks(model)
    inputs = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for parameter in module.parameters()
    }
    for name, parameter in named.items():
        number = _block_of(name, blocks)
        if number is not None:
            yield name, len(blocks) - number
        elif id(parameter) in inputs:
            yield name, len(blocks) + 1


def _blocks(model: nn.Module) -> dict[str, int]:
    return {name: number for number, (name, _) in enumerate(decoder_blocks(model))}


def _block_of(name: str, blocks: Mapping[str, int]) -> int | None:
    """The number of the decoder block that a parameter is in."""
    parts = name.split(".")
    beginnings = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((blocks[each] for each in beginnings if each in blocks), None)
