"""Parameters of a model: their names and shapes, and those that the names of a region mean."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from freezetrain.errors import UserError, near_misses
from freezetrain.regions.adapters import base_names
from freezetrain.regions.entries import Entries

# Submodules that torch.compile and activation checkpointing put between two names.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Resolved:
    """One parameter of a live model and its entries in a region."""

    name: str
    """Full name in the model, the first of its names if it is tied: a key of
    ``dict(model.named_parameters())``."""
    key: str
    """Its name in the region, one of them if it is tied."""
    parameter: nn.Parameter
    entries: Entries


def resolve(entries: Mapping[str, Entries], model: nn.Module) -> list[Resolved]:
    """Find the parameters that the names of ``entries`` mean in ``model``, in the model's order.

    The names may stand in ``model`` itself or under one submodule, as in DDP (``module.``), a
    LightningModule (``model.``) or a PeftModel (``base_model.model.``), in which a base's weights
    are found where adapters have put them, see :mod:`.adapters`. Two names of one tied parameter
    give one item with the union of their entries. Parameters without entries are checked but left
    out. UserError when names are missing, shapes differ, or two different submodules fit (unless
    ``model`` itself does).
    """
    prefix = find_prefix(entries, model)
    parameters = all_parameters(model)
    united: dict[int, tuple[str, Entries]] = {}  # id of a parameter -> its name and entries
    for name, named_entries in entries.items():
        parameter = parameters[prefix + name]
        if full_shape(parameter) != named_entries.shape:
            raise UserError(
                f"the region has {name!r} of shape {list(named_entries.shape)}, the model of shape "
                f"{list(full_shape(parameter))}; pass the model that the region was made for"
            )
        if not named_entries.count:
            continue
        if id(parameter) in united:  # tied, and met under another name before
            name, others = united[id(parameter)]
            named_entries = others | named_entries
        united[id(parameter)] = name, named_entries
    return [
        Resolved(full_name, united[id(parameter)][0], parameter, united[id(parameter)][1])
        for full_name, parameter in model.named_parameters()
        if id(parameter) in united
    ]


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Shape of the whole parameter, also where DeepSpeed ZeRO-3 has left only a shard of it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def find_submodule(names: Iterable[str], model: nn.Module) -> nn.Module:
    """The submodule of ``model`` whose parameters have ``names``; UserError as in resolve."""
    prefix = find_prefix(names, model)
    if not prefix:
        return model
    modules: dict[str, nn.Module] = {
        plain_name(name): module for name, module in model.named_modules(remove_duplicate=False)
    }
    return modules[prefix.removesuffix(".")]


def find_prefix(names: Iterable[str], model: nn.Module) -> str:
    """What stands before all ``names`` in ``model``: ``""`` or, for example, ``"module."``."""
    names = list(names)
    if not names:
        return ""
    parameters = all_parameters(model)
    prefixes: dict[str, list[str]] = {}  # every dotted ending of a parameter's name -> beginnings
    for full in parameters:
        parts = full.split(".")
        for start in range(len(parts)):
            beginning = "".join(part + "." for part in parts[:start])
            prefixes.setdefault(full.removeprefix(beginning), []).append(beginning)
    votes = Counter(prefix for name in names for prefix in prefixes.get(name, ()))
    fitting = [prefix for prefix, count in votes.items() if count == len(names)]
    if not fitting:
        best = votes.most_common(1)[0][0] if votes else ""
        known = {full.removeprefix(best) for full in parameters if full.startswith(best)}
        raise _missing([name for name in names if name not in known], len(names), known)
    if "" in fitting:
        return ""
    different = {tuple(id(parameters[prefix + name]) for name in names) for prefix in fitting}
    if len(different) > 1:  # a student and its teacher, whichever of them lies deeper
        submodules = " and ".join(repr(prefix.removesuffix(".")) for prefix in fitting)
        raise UserError(f"the region fits the submodules {submodules}; pass the one that is meant")
    return min(fitting, key=lambda prefix: prefix.count("."))


def match_parameters(
    model: nn.Module, patterns: Sequence[str] | None = None
) -> dict[str, nn.Parameter]:
    """Parameters of ``model`` that a name or glob pattern selects, each once, in model order.

    None selects all. A tied parameter answers to each of its names and comes back under its
    first. UserError, with near misses, for a pattern that selects nothing.
    """
    everything = all_parameters(model)
    if patterns is None:
        selected = {id(parameter) for parameter in everything.values()}
    else:
        selected = set()
        for pattern in patterns:
            matches = [name for name in everything if name == pattern or fnmatchcase(name, pattern)]
            if not matches:
                raise UserError(
                    f"no parameter of the model is named or matches {pattern!r}"
                    + near_misses(pattern, everything)
                )
            selected.update(id(everything[name]) for name in matches)
    base_name = base_names(model)
    return {
        plain_name(base_name(name)): parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in selected
    }


@contextmanager
def errors_begin_with(name: str) -> Iterator[None]:
    """Put ``name``, of a parameter or a file, before the sentence of a UserError raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name!r}: {error}") from error


def plain_name(name: str) -> str:
    """``name`` without the components that torch.compile and checkpointing put into it."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def all_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every plain name of every parameter, a tied one under each of its names.

    One that an adapter has wrapped also has the name that it bears in the base.
    """
    everything = dict(model.named_parameters(remove_duplicate=False))
    base_name = base_names(model)
    return {plain_name(name): parameter for name, parameter in everything.items()} | {
        plain_name(base_name(name)): parameter for name, parameter in everything.items()
    }


def _missing(missing: list[str], total: int, known: set[str]) -> UserError:
    more = f" and {len(missing) - 1} more of the region's {total}" if len(missing) > 1 else ""
    return UserError(
        f"the model has no parameter {missing[0]!r}{near_misses(missing[0], sorted(known))}{more}; "
        "pass the model that the region was made for"
    )


def layer_of(name: str) -> int | None:
    """3 for ``model.layers.3.mlp.experts.0.weight``; None without an integer component."""
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)
