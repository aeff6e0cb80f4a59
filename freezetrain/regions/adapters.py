"""Where PEFT's adapters put the weights of the base, and which parameters are the adapters' own.

By class and attribute names, so that PEFT need not be installed. A tuner layer (LoRA, IA3 and
their like) keeps the layer that it adapts as ``base_layer``. A layer of ``modules_to_save`` is
trained as the copy ``modules_to_save.default``, beside the base's, ``original_module``. Tokens that
are trained alone (``trainable_token_indices``) have a tuner layer, ``token_adapter``.
"""

from collections.abc import Callable, Iterator

from torch import nn


def _wrappers(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Path of a module that an adapter has put into ``model``, and, below it, of the base's."""
    for path, module in model.named_modules(remove_duplicate=False):
        kinds = {kind.__name__ for kind in type(module).__mro__}
        if "BaseTunerLayer" in kinds and "base_layer" in module._modules:
            yield path, "base_layer"
        elif "AuxiliaryTrainingWrapper" in kinds:
            copies = list(getattr(module, "modules_to_save", None) or ())
            if not copies:
                yield path, "token_adapter" if "token_adapter" in module._modules else ""
            elif len(copies) == 1:  # of several, which is trained may change
                yield path, f"modules_to_save.{copies[0]}"


def base_names(model: nn.Module) -> Callable[[str], str]:
    """A function from a parameter's full name in ``model`` to its name in the base.

    Other names, an adapter's own among them, come back as they are.
    """
    inner = {f"{path}.{below}".lstrip("."): below for path, below in _wrappers(model) if below}
    if not inner:
        return lambda name: name

    def base_name(name: str) -> str:
        path, kept = "", list[str]()
        for part in name.split("."):
            path = f"{path}.{part}" if path else part
            kept.append(part)
            if path in inner:
                del kept[-1 - inner[path].count(".") :]
        return ".".join(kept)

    return base_name


def adapted_parameters(model: nn.Module) -> set[int]:
    """Ids of the base's parameters in layers to which an adapter adds, as merging it would."""
    return {
        id(parameter)
        for path, below in _wrappers(model)
        if below == "base_layer"
        for parameter in model.get_submodule(f"{path}.{below}".lstrip(".")).parameters()
    }


def own_parameters(model: nn.Module) -> set[str]:
    """Full names of parameters that are the adapters' own: the base has none of that name."""
    wrappers = [(f"{path}.".lstrip("."), below) for path, below in _wrappers(model)]
    return {
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if any(
            name.startswith(path) and below and not name.startswith(f"{path}{below}.")
            for path, below in wrappers
        )
    }
