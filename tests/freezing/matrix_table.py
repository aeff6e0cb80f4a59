"""docs/engines.md, made from the outcomes of the engine matrix."""

from collections.abc import Callable, Iterable, Mapping

from matrix_cells import DTYPES, ENGINES, FREEZE, Cell

PASSES, FAILS, NOT_RUN = "✓", "✗", "not run"

_INTRODUCTION = """\
# Engines

<!-- Made by tests/freezing/test_matrix.py from what it saw; see there how to make it anew. -->

A tick means that a small model was trained for real by {ranks} gloo processes on CPUs (not GPUs),
with clipping that acts, gradient accumulation, a tied weight and two parameter groups, and that:

- every frozen entry had the bits that it started with, in the weights of the forward pass, in the
  values that the optimizer steps (fp32 masters where there are some), in the checkpoint on disk and
  in the exported weights;
- trainable entries were, to rounding, those of one process in fp64 in which frozen entries are
  constants, and did move;
- so was the gradient norm of every step, which counts trainable entries alone;
- the handle's digest was that of the same region on one device.

Without a freeze the same entries move, as the test checks too.

bf16 and fp16: the forward pass in 16 bits, fp32 masters (autocast, FSDP2's
`MixedPrecisionPolicy`, DeepSpeed); fp16 with loss scaling that skips the first steps. bf16-true:
weights and optimizer in bf16. AdamW and NAdam decay weights apart from the gradient, SGD has
momentum and L2, Nesterov is SGD with `nesterov=True`. With 3 and 4 ranks, where shards are
uneven or empty, the optimizer is AdamW.
"""

_PULL = """\
## The pull to the base

The same runs with `freezetrain.pull`: a fifth of the way to the base in each step at the learning
rate of the first of two groups, for the entries of one region more than half and for those of
another all of it. A tick means that the weights, in the same four places, were to rounding those
of one process in fp64 that does θ ← θ − min(1, η·λ)·(θ − θ₀) after each step, that gradient norms
were too, and that the distances to the base were those of the weights. A step that loss scaling
skips pulls nothing. *pull beside a freeze*: the base is read from a folder, in fp32 and other than
the start, and every frozen entry keeps its bits. *pull*: the base is what the weights are as it
begins; in fp16 it is read. The optimizer is AdamW where none is named.
"""

_COSTS = """\
## What it costs

- One device, DDP: each rank keeps the region's entries (4 bytes an entry; on a GPU 1 bit a weight
  of a parameter of which more than an eighth is frozen), and during a step one value for each.
  With audits, which are on by default, the values of the start stay in the CPU's memory.
- FSDP2: each rank masks, guards and audits its own shards, with the entries that lie there; all of
  it falls with the number of ranks.
- ZeRO-1, 2 and 3, offloaded or not: each rank guards and audits its own fp32 partition, which
  falls with the number of ranks. For the gradient mask each rank keeps all of the region's entries
  (as many bytes as on one device): DeepSpeed takes the norm while it
  reduces, so that masking shards afterwards would be too late. At stages 1 and 2 an audit also
  reads the region in the weights of the forward pass, which every rank has.
- A pull keeps the base's values of what this rank's optimizer steps, all weights on one device and
  under DDP, else divided by the ranks: in 16 bits where those hold the base exactly, with
  `on_cpu=True` in the CPU's memory.
- FSDP2 and ZeRO gather each parameter of the region once, one at a time, when the freeze starts.
- The handle holds the region that it was given, in the CPU's memory of every rank.
- Audits read each rank's frozen values and gather one digest a rank; see `audit_every`. One took
  12 ms where a step took 1.67 s: 2 CPU cores, 21 million weights, 2,048 tokens a step, 170,380
  frozen entries (`benchmarks/freezing.py`, table in `benchmarks/README.md`). At the default of one
  in 100 steps that is 0.007% of the time. Nothing was measured on a GPU.
"""


def render(marks: Mapping[Cell, str], refused: Mapping[str, str]) -> str:
    """``marks``: PASSES, FAILS or NOT_RUN for each cell. ``refused``: what -> its message."""
    frozen = {cell: mark for cell, mark in marks.items() if cell.held == FREEZE}
    pulled = {cell: mark for cell, mark in marks.items() if cell.pulls}
    worlds = sorted({cell.world for cell in marks})
    ranks = ", ".join(map(str, worlds[:-1])) + f" or {worlds[-1]}"
    parts = [
        _INTRODUCTION.format(ranks=ranks),
        "## Supported\n",
        *_tables(frozen, lambda cell: cell.optimizer),
        _PULL,
        *_tables(pulled, lambda cell: cell.held),
        "## Refused\n\nEach raises this, before anything is trained:\n",
        _table(("what", "message"), refused.items()),
        "What is in neither table has not been tried.\n",
        _COSTS,
    ]
    return "\n".join(parts)


Label = Callable[[Cell], str]


def _tables(marks: Mapping[Cell, str], label: Label) -> list[str]:
    return [
        _matrix({cell: mark for cell, mark in marks.items() if not cell.variant}, label),
        "Further runs:\n",
        _variants({cell: mark for cell, mark in marks.items() if cell.variant}),
    ]


def _matrix(marks: Mapping[Cell, str], label: Label) -> str:
    rows = []
    for engine in ENGINES:
        here = {cell: mark for cell, mark in marks.items() if cell.engine == engine}
        worlds = sorted({cell.world for cell in here})
        ranks = ", ".join(map(str, worlds))
        rows.append((engine, ranks, *(_marked(here, precision, label) for precision in DTYPES)))
    return _table(("engine", "ranks", *DTYPES), rows)


def _marked(marks: Mapping[Cell, str], precision: str, label: Label) -> str:
    """The labels of one engine and precision, each by the worst of its marks."""
    found: dict[str, str] = {}
    for cell, mark in marks.items():
        if cell.precision == precision and found.get(label(cell)) != FAILS:
            found[label(cell)] = mark
    by_mark = {
        mark: [name for name, its in found.items() if its == mark]
        for mark in dict.fromkeys(found.values())
    }
    return "; ".join(f"{mark} {', '.join(names)}" for mark, names in by_mark.items())


def _variants(marks: Mapping[Cell, str]) -> str:
    found: dict[tuple[str, str], list[str]] = {}
    for cell, mark in marks.items():
        ranks = f", {cell.world} ranks" if cell.world > 2 else ""
        run = f"{cell.engine} ({cell.precision}, {cell.optimizer}{ranks})"
        found.setdefault((cell.variant, mark), []).append(run)
    rows = ((variant, f"{mark} {'; '.join(runs)}") for (variant, mark), runs in found.items())
    return _table(("with", "engine"), sorted(rows))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
