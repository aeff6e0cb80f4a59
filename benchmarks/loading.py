"""Loading the 1% region of a model of a billion weights, every entry checked, and finding its
parameters in the model: time against merely reading the file and against loading dense masks, as
the paper's script keeps them; and memory that the process has of its own afterwards.

All of a region is read and checked when it is loaded, one tensor at a time, so that a damaged file
is refused at once and not in the middle of a training run; what is kept is what the file holds.
Each rank of every engine holds either whole tensors or a part of each, and masks of gradients that
are not reduced yet need all of their entries: there is no tensor that a rank could leave out. The
model has the shapes of Llama 3.2 1B's decoder blocks and no weights. Memory is Linux's RssAnon, in
a process for each way.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from benchmarks.harness import Options, Results, Row, alternate, ratios, shown, spread
from benchmarks.selecting import BLOCKS, HIDDEN, INNER, KEY_VALUE, shapes
from freezetrain.regions import Entries, Region
from freezetrain.regions.entries import draw_indices
from freezetrain.regions.storage import read_safetensors

TITLE = "Loading a region"
RATIO = 0.01
BYTES_GOAL = 4  # an entry, as the file has it
ROOT = Path(__file__).parents[1]
FILE, MASKS = "region.safetensors", "masks"
SMALL = (8, 16, 4, 1)  # sizes of a region that is loaded first, so that code does not count

# In a process of its own: MB before a way has run, after it, and the most in between.
_HELD = """
import json, re, sys, threading, time
from pathlib import Path
from benchmarks import loading

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024 / 1e6

way = loading.ways(Path(sys.argv[1]), *map(int, sys.argv[3:]))[sys.argv[2]]
loading.ways(Path(sys.argv[1]) / "small", *loading.SMALL)[sys.argv[2]]()
before = most = held()
done = False

def look():
    global most
    while not done:
        most = max(most, held())
        time.sleep(0.001)

watch = threading.Thread(target=look)
watch.start()
kept = way()
done = True
watch.join()
print(json.dumps({"kept": held() - before, "most": max(most, held()) - before}))
"""


def model(*sizes: int) -> nn.Module:
    """Parameters of the ``sizes`` that :func:`~benchmarks.selecting.shapes` takes, without data."""
    whole = nn.Module()
    for name, shape in shapes(*sizes).items():
        *path, leaf = name.split(".")
        at = whole
        for part in path:
            if not hasattr(at, part):
                at.add_module(part, nn.Module())
            at = at.get_submodule(part)
        at.register_parameter(leaf, nn.Parameter(torch.empty(shape, device="meta")))
    return whole


def write(folder: Path, *sizes: int) -> Region:
    """The region of a model, as our file and as the paper's dense masks; and a small one beside."""
    for place, few in ((folder / "small", SMALL), (folder, sizes)):
        (place / MASKS).mkdir(parents=True)
        entries = {}
        for name, shape in shapes(*few).items():
            numel = shape[0] * shape[1]
            drawn = draw_indices(numel, int(RATIO * numel + 0.5), 0, name)
            entries[name] = Entries.from_indices(shape, drawn)
            torch.save(entries[name].mask(), place / MASKS / f"{name}.pt")
        region = Region(entries)
        region.save(place / FILE)
    return region


def ways(folder: Path, *sizes: int) -> dict[str, Callable[[], object]]:
    """What is timed; each returns what it keeps."""
    file, parameters = folder / FILE, model(*sizes)

    def load() -> object:
        region = Region.load(file)
        return region, region.resolve(parameters)

    def read() -> object:
        tensors, _ = read_safetensors(file, "region")
        return [tensors[name].sum() for name in tensors]

    def one() -> object:
        tensors, _ = read_safetensors(file, "region")
        return tensors[next(iter(tensors))].sum()

    def dense() -> object:
        masks = (folder / MASKS).glob("*.pt")
        return {path.stem: torch.load(path, weights_only=True) for path in masks}

    return {
        "read the file": read,
        "read one tensor": one,
        "Region.load": lambda: Region.load(file),
        "Region.load and resolve": load,
        "dense masks": dense,
    }


def held(folder: Path, way: str, *sizes: int) -> dict[str, float]:
    """MB that ``way`` keeps, and has at the most, beyond what its process had before."""
    words = [sys.executable, "-c", _HELD, str(folder), way, *map(str, sizes)]
    # Freed memory is given back at once.
    allocator = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), "65536")
    printed = subprocess.run(
        words, check=True, stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, **allocator}
    ).stdout
    result: dict[str, float] = json.loads(printed)
    return result


def measured(rounds: int, *sizes: int) -> Results:
    """``sizes`` as those of :func:`~benchmarks.selecting.shapes`."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "large"
        region = write(folder, *sizes)
        seconds = alternate(ways(folder, *sizes), rounds)
        memory = {
            way: held(folder, way, *sizes) for way in ("Region.load and resolve", "dense masks")
        }
        size = (folder / FILE).stat().st_size
    return {
        "weights": region.numel,
        "entries": region.count,
        "parameters": len(region),
        "file_bytes": size,
        "seconds": seconds,
        "ratios": ratios(seconds, "Region.load and resolve"),
        "times_of_reading": ratios(seconds, "read the file"),
        "memory": memory,
    }


def measure(options: Options) -> Results:
    return measured(options.rounds, HIDDEN, INNER, KEY_VALUE, BLOCKS)


def rows(figures: Results) -> list[Row]:
    size = f"{figures['entries'] / 1e6:,.1f}M entries of {figures['weights'] / 1e6:,.0f}M weights"
    ours = "Region.load and resolve"
    lines = [
        Row(f"{ours}: {size}", f"{_milliseconds(figures, ours)} ms"),
        Row("Region.load", f"{_milliseconds(figures, 'Region.load')} ms"),
        Row("reading the file unchecked", f"{_milliseconds(figures, 'read the file')} ms"),
        Row("reading one tensor unchecked", f"{_milliseconds(figures, 'read one tensor')} ms"),
        Row("dense masks, time of ours", shown(figures["ratios"]["dense masks"], 1)),
    ]
    for way, bound in ((ours, BYTES_GOAL), ("dense masks", None)):
        memory = figures["memory"][way]
        kept = memory["kept"] * 1e6 / figures["entries"]
        figure = (
            f"{kept:.1f} bytes an entry ({memory['kept']:,.0f} MB; {memory['most']:,.0f} at most)"
        )
        if bound is None:
            lines.append(Row(f"memory kept, {way}", figure))
            continue
        met = round(kept, 1) <= bound
        more = memory["kept"] - figures["entries"] * bound / 1e6
        note = "" if met else f"{more:,.1f} MB more than the entries take"
        lines.append(
            Row(f"memory kept, {way}", figure, f"at most {bound} bytes an entry", met, note)
        )
    return lines


def _milliseconds(figures: Results, way: str) -> str:
    return shown(spread([1000 * own for own in figures["seconds"][way]]), 1)
