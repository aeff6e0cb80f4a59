"""A cache of keys and values with room for a whole sequence, so that no step copies the last's.

transformers' own grows by one token at each step, into a new tensor: on a CPU, more than half of
the time that a small model takes to draw.
"""

from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from freezetrain.forward import accepted


def roomy_cache(model: PreTrainedModel, length: int) -> Cache | None:
    """A cache for sequences of ``length`` tokens; None: the model takes one of its own making.

    Layers of other kinds, as of sliding windows and states, are those of transformers.
    """
    takes_it = getattr(model, "_supports_default_dynamic_cache", lambda: False)()
    if not takes_it or not accepted(model, {"past_key_values": None}):
        return None
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    cache.layers = [
        _Roomy(length) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache if any(isinstance(layer, _Roomy) for layer in cache.layers) else None


class _Roomy(DynamicLayer):  # type: ignore[no-untyped-call]
    is_croppable = False

    def __init__(self, length: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._length = length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._room = [
            states.new_empty((*states.shape[:-2], self._length, states.shape[-1]))
            for states in (key_states, value_states)
        ]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """As of DynamicLayer: all states so far, [B, H, T, D] each."""
        held = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = held + key_states.shape[-2]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[..., held:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._room)
        return self.keys, self.values
