"""What freezing costs each rank, by arithmetic: bytes held, bytes moved, seconds.

Counted is the traffic that cannot be avoided: of a tensor in which single entries are frozen,
every memory line (a sector on a GPU) that holds one has to come and to go back, and what says
which they are has to come. Left out: hooks and the launching of kernels, which take the same time
for few entries; widening the indices of one tensor at a time; whatever a cache holds already; and
that some of it may overlap with computing.
"""

from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Machine:
    """What a rank computes on; bytes and operations a second are of one rank."""

    name: str
    line: int
    """Bytes that memory gives or takes at a time: a cache line, or a sector of a GPU's L2."""
    bandwidth: float
    """Bytes a second, read and written, when streaming."""
    scattered: float
    """Bytes a second of lines, read and written, when only some lines are touched."""
    operations: float = 0.0
    """Floating-point operations a second of training: peak times utilization; 0 if not told."""
    indices_up_to: float = 1.0
    """Largest share of a tensor whose entries a freeze holds as indices, not as bits
    (``Entries.for_training``)."""
    memory: float = 0.0
    """Bytes of memory; 0 if not told."""


# NVIDIA's data sheet of the H100 SXM: 80 GB, 3.35 TB/s, 989 TFLOP/s of dense bf16. Lines are the
# 32-byte sectors of its L2 (CUDA C++ Best Practices Guide). Assumed, not measured: 80% of that
# bandwidth when streaming, 40% when sectors are scattered, 40% model FLOPs utilization.
H100 = Machine("H100", 32, 0.8 * 3.35e12, 0.4 * 3.35e12, 0.4 * 989e12, 1 / 8, 80e9)


@dataclass(frozen=True)
class Shape:
    """A Llama's: its matrices as [outputs, inputs]. Norms, never frozen, are left out."""

    hidden: int
    inner: int
    layers: int
    rows: int
    """Of the embedding, and of the head."""
    key_value: int = 0
    """Outputs of the key and value projections; 0: as many as ``hidden``."""

    @property
    def block(self) -> list[tuple[int, int]]:
        """The matrices of a decoder block."""
        h, i, kv = self.hidden, self.inner, self.key_value or self.hidden
        return [(h, h), (kv, h), (kv, h), (h, h), (i, h), (i, h), (h, i)]

    @property
    def matrices(self) -> int:
        """Weights of all decoder blocks."""
        return self.layers * sum(outputs * inputs for outputs, inputs in self.block)

    @property
    def weights(self) -> int:
        return self.matrices + 2 * self.rows * self.hidden


# LLaMA-2's (arXiv 2307.09288).
SHAPES = {
    "7B": Shape(4096, 11008, 32, 32000),
    "70B": Shape(8192, 28672, 80, 32000, 1024),
}


@dataclass(frozen=True)
class Training:
    """A model on ``ranks`` ranks of an engine."""

    shape: Shape
    engine: str
    """``DDP`` (also one process), ``ZeRO-2`` or ``ZeRO-3``."""
    ranks: int
    tokens: int = 0
    """Of each rank in a micro-step."""
    micro_steps: int = 1
    """Micro-steps of each optimizer step."""
    gradient: int = 2
    """Bytes of an entry of a gradient, and of a weight of the forward pass."""
    master: int = 4
    """Bytes of an entry of what the optimizer steps."""

    @property
    def own(self) -> float:
        """Decoder weights whose masters the fullest rank steps.

        ZeRO-2 cuts all weights, in the model's order, into equal parts; ZeRO-3 each tensor.
        """
        if self.engine == "DDP":
            return self.shape.matrices
        if self.engine == "ZeRO-3":
            return self.shape.matrices / self.ranks
        first = self.shape.rows * self.shape.hidden  # the embedding; the head comes last
        end, size = first + self.shape.matrices, self.shape.weights / self.ranks
        return max(
            min((rank + 1) * size, end) - max(rank * size, first) for rank in range(self.ranks)
        )

    @property
    def state(self) -> float:
        """Bytes of weights, gradients, masters and Adam's two moments (ZeRO, arXiv 1910.02054)."""
        of, split = self.shape.weights, self.ranks
        copy = self.gradient if self.gradient != self.master else 0
        parts = {
            "DDP": of * (copy + self.gradient + 3 * self.master),
            "ZeRO-2": of * copy + of * (self.gradient + 3 * self.master) / split,
            "ZeRO-3": of * (copy + self.gradient + 3 * self.master) / split,
        }
        return parts[self.engine]

    def step_seconds(self, machine: Machine) -> float:
        """Of computing alone: 6 operations a weight and token; those of attention left out."""
        operations = 6 * self.shape.weights * self.tokens * self.micro_steps
        return operations / machine.operations


@dataclass(frozen=True)
class Frozen:
    """That share of every decoder matrix: ``entries`` or ``columns``, at random."""

    kind: str
    ratio: float

    def held(self, machine: Machine, elements: float) -> float:
        """Bytes of single entries among so many elements, as a freeze keeps them."""
        if self.ratio <= max(machine.indices_up_to, 1 / 32):
            return 4 * self.ratio * elements
        return elements / 8

    def whole(self, machine: Machine, shape: Shape) -> float:
        """Bytes of the region, as a mask of whole parameters keeps it."""
        if self.kind == "columns":
            return shape.layers * sum(4 * round(self.ratio * inputs) for _, inputs in shape.block)
        return self.held(machine, shape.matrices)

    def stored(self, shape: Shape) -> float:
        """Bytes of the region as a file has it: indices where they are not larger than bits."""
        if self.kind == "columns":
            return self.whole(H100, shape)
        return min(4 * self.ratio, 1 / 8) * shape.matrices

    def touched(self, machine: Machine, elements: float, size: int) -> float:
        """Bytes of the lines that hold frozen entries of ``size`` bytes.

        A line of n entries holds one with probability 1 - (1 - ratio)^n. Columns as well: in a
        row they are as random.
        """
        of_line = machine.line // size
        return elements * size * (1 - (1 - self.ratio) ** of_line)


@dataclass(frozen=True)
class Cost:
    """Bytes and seconds of one rank: of ZeRO-2, of the one that steps most of the region."""

    entries: float
    """Bytes that say what is frozen, all the time; on a GPU, those that it holds."""
    guarded: float
    """Of them those of the masters that this rank steps."""
    values: float
    """Bytes of frozen values during an optimizer step."""
    mask_moved: float
    """Bytes read and written in each micro-step."""
    guard_moved: float
    """Bytes read and written in each optimizer step."""
    mask_seconds: float
    guard_seconds: float
    state: float = 0.0
    """Bytes that training holds without a freeze, activations left out."""
    step_seconds: float = 0.0
    """Of an optimizer step without a freeze, communication left out; 0 where not told."""
    micro_steps: int = 1

    @property
    def share(self) -> float:
        """Seconds added, by those of the step."""
        return (self.mask_seconds * self.micro_steps + self.guard_seconds) / self.step_seconds


def freeze_cost(training: Training, frozen: Frozen, machine: Machine) -> Cost:
    """Of the gradient mask and the step guard as freezetrain.freezing lays them out."""
    shape, own = training.shape, training.own
    whole = frozen.whole(machine, shape)
    # DDP guards what it masks. A part of a tensor, flat, has no columns: single entries then.
    guarded = whole if training.engine == "DDP" else frozen.held(machine, own)
    shared = guarded if training.engine == "DDP" else 0.0
    values = frozen.ratio * own * training.master

    gradients = frozen.touched(machine, shape.matrices, training.gradient)
    masters = frozen.touched(machine, own, training.master)

    def seconds(lines: float, elements: float, size: int, times: int, streamed: float) -> float:
        # Fetching every line is never worse than fetching some.
        one = min(lines / machine.scattered, elements * size / machine.bandwidth)
        return times * one + streamed / machine.bandwidth

    # A line of which a part is written comes first: two ways for the mask's zeros; for the guard
    # one to read the values and two to put them back.
    indices, values_moved = whole, 2 * guarded + 2 * values
    return Cost(
        entries=whole + guarded - shared,
        guarded=guarded,
        values=values,
        mask_moved=2 * gradients + indices,
        guard_moved=3 * masters + values_moved,
        mask_seconds=seconds(gradients, shape.matrices, training.gradient, 2, indices),
        guard_seconds=seconds(masters, own, training.master, 3, values_moved),
        state=training.state,
        step_seconds=training.step_seconds(machine) if machine.operations else 0.0,
        micro_steps=training.micro_steps,
    )


def restore_cost(training: Training, machine: Machine) -> Cost:
    """Of the paper's script, whatever share is frozen: a dense mask and dense values of 16 bits.

    After each micro-step ``weights.mul_(~mask)`` and ``weights.add_(saved)``, over whole weights.
    """
    of, size = training.shape.matrices, training.gradient
    # ~mask: read and written; mul_: weights and mask read, weights written; add_: two read, one
    # written.
    moved = of * ((1 + 1) + (size + 1 + size) + (size + size + size))
    return Cost(
        entries=of * (1 + size),
        guarded=0.0,
        values=0.0,
        mask_moved=moved,
        guard_moved=0.0,
        mask_seconds=moved / machine.bandwidth,
        guard_seconds=0.0,
        state=training.state,
        step_seconds=training.step_seconds(machine) if machine.operations else 0.0,
        micro_steps=training.micro_steps,
    )


def micro_steps(batch_tokens: int, ranks: int, tokens: int) -> int:
    """Micro-steps of ``tokens`` on each rank that make up a batch."""
    return ceil(batch_tokens / (ranks * tokens))
