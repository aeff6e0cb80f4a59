"""How long the command line takes to start: help, and what a region file holds, as whole processes.

Beside them stand a Python that does nothing, which nothing can be faster than, and one that imports
torch, which every command that touches a tensor must. They take turns.
"""

import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.harness import Options, Results, Row, alternate, shown, spread

TITLE = "Start-up of the command line"
HELP_GOAL = 1.0  # seconds
ROUNDS = 7
ROOT = Path(__file__).parents[1]
PLAIN, TORCH = "python -c pass", 'python -c "import torch"'
IMPORT = 'python -c "import torch, freezetrain"'
FREEZE = 'python -c "import torch; from freezetrain import freeze"'
IMPORT_GOAL = 0.1  # seconds more than torch alone


def commands(region: Path, out: Path) -> dict[str, list[str]]:
    """What is timed, and the words after ``python``."""
    own = ["-m", "freezetrain"]
    return {
        PLAIN: ["-c", "pass"],
        TORCH: ["-c", "import torch"],
        IMPORT: ["-c", "import torch, freezetrain"],
        FREEZE: ["-c", "import torch; from freezetrain import freeze"],
        "freezetrain --help": [*own, "--help"],
        "freezetrain train --help": [*own, "train", "--help"],
        "freezetrain info REGION": [*own, "info", str(region), "--out", str(out)],
    }


def measured(rounds: int, only: tuple[str, ...] = ()) -> Results:
    """Seconds of each command; of all, or ``only`` those."""
    import torch

    from freezetrain.regions import Region

    with TemporaryDirectory() as folder:
        region, out = Path(folder) / "region.safetensors", Path(folder) / "out"
        Region.from_masks({"layers.0.weight": torch.eye(64, dtype=torch.bool)}).save(region)
        number = 0

        def run(words: list[str]) -> None:
            nonlocal number
            number += 1  # info wants a folder of its own
            words = [f"{word}-{number}" if word == str(out) else word for word in words]
            words = [sys.executable, *words]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)

        timed = {
            name: lambda words=words: run(words)
            for name, words in commands(region, out).items()
            if not only or name in only
        }
        seconds = alternate(timed, rounds)
    return {"seconds": seconds, "spread": {name: spread(own) for name, own in seconds.items()}}


def measure(options: Options) -> Results:
    return measured(ROUNDS)


def rows(figures: Results) -> list[Row]:
    lines = []
    for name, figure in figures["spread"].items():
        if name == IMPORT:
            both = zip(figures["seconds"][name], figures["seconds"][TORCH], strict=True)
            more = [own - torch for own, torch in both]
            met = median(more) < IMPORT_GOAL
            more_shown = f"{shown(spread(more), 3)} s more than torch alone"
            lines.append(Row(name, more_shown, f"under {IMPORT_GOAL} s more", met))
            continue
        if name != "freezetrain --help":
            lines.append(Row(name, f"{shown(figure, 2)} s"))
            continue
        met = figure["median"] < HELP_GOAL
        python = median(figures["seconds"][PLAIN])
        note = "" if met else f"{python:.2f} s of it are Python's own start"
        lines.append(Row(name, f"{shown(figure, 2)} s", f"under {HELP_GOAL:.0f} s", met, note))
    return lines
