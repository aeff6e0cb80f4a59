"""The command line in this process, and what a verb leaves."""

import json
from pathlib import Path
from typing import Any

from freezetrain.cli import main


def freezetrain(*words: object) -> int:
    """Run ``freezetrain WORDS``; its exit status."""
    try:
        main([str(word) for word in words])
    except SystemExit as stopped:
        return int(stopped.code or 0)
    raise AssertionError("a verb ends with an exit status")


def on_a_rank(rank: int, world: int, *words: str) -> int:
    """The same on a rank, for ``forked_ranks.run_ranks``."""
    return freezetrain(*words)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))
