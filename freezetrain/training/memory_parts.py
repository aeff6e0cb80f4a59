"""What the memory of a rank is made of, and the sizes that follow from the engine."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from freezetrain.training.engines import kind_of, trained_in_16_bits
from freezetrain.training.recipe import TrainRecipe

# Moments of a run in which different parts are there. The peak is the largest of their sums.
ALWAYS = ("load", "forward", "loss", "backward", "step", "watch")

TRAINING = ALWAYS[1:]

PASS = ("forward", "loss", "backward")


@dataclass(frozen=True)
class Part:
    """Bytes that a rank takes for one purpose."""

    name: str
    device: float
    """On the GPU; without GPUs, in the memory that it would have."""
    during: tuple[str, ...] = TRAINING
    host: float = 0
    """In CPU memory, beside a GPU."""


class Shapes:
    """Sizes that follow from the engine."""

    def __init__(self, model: PreTrainedModel, recipe: TrainRecipe, world: int) -> None:
        self.world = over = world // recipe.engine.replicas
        """Ranks that weights or optimizer are split over."""
        self.kind = kind_of(recipe.engine, world)
        self.zero = int(self.kind[-1]) if self.kind.startswith("zero") else 0
        settings = recipe.optimization
        self.accumulates = settings.accumulate(world) > 1
        self.in_16_bits = trained_in_16_bits(settings)
        parameters = list(model.parameters())
        self.weights = sum(p.numel() for p in parameters)
        stored = max(p.element_size() for p in parameters)
        self.loaded = stored
        if self.zero:
            self.held = 2 if self.in_16_bits else 4
        else:
            self.held = 2 if settings.precision == "bf16-true" else stored
        """Bytes of a weight."""
        self.split = self.kind == "fsdp2" or self.zero == 3
        self.share = sum(-(-p.shape[0] // over) * p[0].numel() for p in parameters)
        """Weights of the largest shard: FSDP2 splits rows, DeepSpeed flat tensors."""
        if self.zero:
            self.share = -(-self.weights // over)
        self.local = self.share if self.split else self.weights
        whole = [p.numel() for p in parameters if p.requires_grad]
        self.trained = self.local if self.zero or self.split else sum(whole)
        """Weights on a rank that have a gradient; engines that split them train all."""
        largest: float = max(whole) * self.held
        if self.kind == "fsdp2":
            largest /= over
        self.largest_step = 4 * self.share if self.zero else largest
        """Bytes of the largest tensor that AdamW steps on a rank."""
        self.largest = max(whole)
        if self.zero or self.kind == "fsdp2":
            self.largest = -(-self.largest // over) if self.split else min(self.largest, self.share)
        """Weights of the largest parameter, as far as one rank steps them."""

    @property
    def autocast(self) -> bool:
        """Whether weights are fp32 and cast in each forward pass."""
        return self.in_16_bits and not self.zero and self.kind != "fsdp2" and self.held == 4

    @property
    def computed(self) -> int:
        """Bytes of a weight in a product."""
        return 2 if self.in_16_bits else self.held
