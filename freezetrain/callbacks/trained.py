"""What callbacks read of the weights that are trained, and of the base that they started from."""

from collections.abc import Iterator

from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    SingleDeviceStrategy,
    SingleDeviceXLAStrategy,
    Strategy,
    XLAStrategy,
)
from torch import Tensor, float32, nn, promote_types

from freezetrain.errors import UserError


def trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters with their names, a tied one once."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def wide(values: Tensor) -> Tensor:
    """In fp32, or in fp64 where they are."""
    return values.to(promote_types(values.dtype, float32))


def base_weights(module: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU, of the trainable parameters as they are now; UserError for none."""
    copies = {name: p.detach().to("cpu", copy=True) for name, p in trained(module)}
    if not copies:
        raise UserError(
            f"expected {type(module).__name__} to have its trainable parameters by the hook setup, "
            "found none; build the model in __init__"
        )
    return copies


def require_whole(strategy: Strategy, who: str) -> None:
    """UserError, in the name of the callback ``who``, where ranks do not hold all weights."""
    good = SingleDeviceStrategy | DDPStrategy
    bad = DeepSpeedStrategy | SingleDeviceXLAStrategy | XLAStrategy  # subclasses of these
    if not isinstance(strategy, good) or isinstance(strategy, bad):
        raise UserError(
            f"{who} cannot compare weights with the base's under {type(strategy).__name__}: train "
            "on one device or with DDPStrategy, or without it"
        )
