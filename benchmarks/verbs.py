"""Every verb on a real model: does it work, how long does it take, how much memory.

    python -m benchmarks.verbs MODEL --out FOLDER [--other MODEL] [--only PATTERN]

Each verb runs as a user gives it, on texts of the Declaration, with little work: that a large
vocabulary, real weights and the model's own architecture pass through all of it is what is seen.
What is in FOLDER from an earlier start is not run again. Beside the exit status something of each
result is checked. Peak memory is the most that a process of the verb ever held (Linux).
Prints a Markdown table and leaves verbs.json in FOLDER. ``--other``: a model with another
tokenizer, that forgetting is measured against too.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import freezetrain

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """A verb with its arguments, and what its results must say."""

    name: str
    arguments: list[Any]
    check: Callable[[Results, Path], str]
    """Gives what was seen, for the table; raises AssertionError."""
    kill_at: str | None = None
    """A pattern in the folder: once there is such a file the verb is killed, and begun again."""


@dataclass(frozen=True)
class Row:
    """How it went."""

    step: str
    seconds: float
    gigabytes: float
    passed: bool
    seen: str


EVALUATED = ["--evaluation.languages", "[en,zh,sw]", "--evaluation.documents", 3]
SCORED = ["--languages", "[en,es,zh]", "--sequences", 6, "--sequence_length", 128]


def steps(model: str, other: str | None, out: Path) -> list[Step]:
    """All verbs, in an order in which each finds what it needs."""
    core, vocabulary = out / "core" / "region.safetensors", out / "rows" / "region.safetensors"

    def train(name: str, *more: Any, steps: int = 3, **options: Any) -> Step:
        arguments = [
            "train", "--model", model, "--languages", "[zh]", "--region", core,
            "--optimization.max_steps", steps, "--optimization.sequence_length", 128,
            "--optimization.micro_batch", 2, "--optimization.batch_tokens", 512,
            "--optimization.warmup_steps", 1, "--optimization.document_mask", "true",
            "--watch.languages", "[en,zh,sw]", "--watch.documents", 2, *more,
        ]  # fmt: skip
        return Step(name, arguments, _trained, **options)

    def verify(name: str, run: str, region: Path = core) -> Step:
        folder = out / run / "model"
        return Step(
            name, ["verify", "--base", model, "--adapted", folder, "--region", region], _verified
        )

    two = ["--engine.devices", 2, "--engine.kind"]
    saved = ["--checkpoint_every", 1]
    others = [{"path": str(out / "train" / "model")}, *([] if other is None else [{"path": other}])]
    return [
        Step("info", ["info", "--path", model], lambda r, _: f"{r['parameters']:,} weights"),
        Step("score", ["score", "--model", model, *SCORED], lambda r, _: f"loss {_loss(r):.2f}"),
        Step("core", ["select", "--scores", out / "score", "--ratio", 0.01], _selected),
        Step(
            "rows",
            ["select", "--kind", "vocabulary", "--model", model, "--language", "zh",
             "--min_count", 1],
            _selected,
        ),
        Step(
            "ablate",
            ["ablate", "--model", model, "--regions", f"[{core}]", *EVALUATED,
             "--prompts", "['There are 365 days in a year and 12']", "--new_tokens", 8],
            lambda r, _: _rises(r),
        ),
        Step(
            "perturb",
            ["perturb", "--model", model, "--scores", out / "score", "--count", 2, *EVALUATED],
            lambda r, _: f"{len(r['weights'])} weights, and as many random ones",
        ),
        Step("overlap", ["overlap", "--regions", f"[{core},{vocabulary}]"], lambda r, _: "ok"),
        Step(
            "rehearse",
            ["rehearse", "--model", model, "--languages", "[en,zh]", "--sequences", 8,
             "--sequence_length", 48, "--batch", 4],
            lambda r, _: f"{sum(row['tokens'] for row in r['rehearsed'])} tokens",
        ),
        train("train"),
        verify("verify", "train"),
        train("resume", *saved, kill_at="checkpoints/*step=1*"),
        train("pull-rehearse", "--pull.strength", 20, "--rehearse.folder", out / "rehearse",
              "--rehearse.share", 0.25),
        train("zero-2", *two, "zero-2"),
        verify("verify-zero-2", "zero-2"),
        train("zero-3", *two, "zero-3"),
        verify("verify-zero-3", "zero-3"),
        train("fsdp2", *two, "fsdp2"),
        verify("verify-fsdp2", "fsdp2"),
        Step(
            "rows-train",
            [*train("", steps=2).arguments, "--region", vocabulary],
            _trained,
        ),
        verify("verify-rows", "rows-train", vocabulary),
        Step(
            "bfloat16",
            [*train("", steps=2).arguments, "--optimization.precision", "bf16-mixed",
             "--optimization.sequence_length", 16, "--optimization.micro_batch", 1,
             "--optimization.batch_tokens", 16, "--watch", '{"off": true}'],
            lambda r, _: f"final loss {r['final_loss']:.3f}",
        ),
        verify("verify-bfloat16", "bfloat16"),
        Step(
            "forgetting",
            ["forgetting", "--base.path", model, "--models", json.dumps(others), "--target", "zh",
             *EVALUATED],
            lambda r, _: f"{len(r['runs'])} models",
        ),
        Step(
            "extend",
            ["extend", "--model", model, "--learn", 50, "--language", "sw"],
            lambda r, _: "ok",
        ),
        Step(
            "compare", ["compare", _comparison(model, out)],
            lambda r, _: f"{len(r['runs'])} runs",
        ),
        Step(
            "paper",
            ["paper", "--model", model, "--languages", "[en,zh]", "--core_languages", "[en,zh]",
             "--methods", "[taylor]", "--sequence_length", 128, "--sequences", 6,
             "--snapshots", "[]", "--ratios", "[0.01]", "--random_seeds", "[0]", "--weights", 1,
             "--documents", 1],
            lambda r, _: f"{len(r['claims'])} claims",
        ),
        Step(
            "quickstart",
            ["quickstart", "--model", model, "--minutes", 10],
            lambda r, _: (
                f"announced {r['expected_seconds'] / 60:.1f} minutes, took "
                f"{r['seconds']['total'] / 60:.1f}"
            ),
        ),
        # At default settings, where batches are as large as a user's: for their memory.
        Step(
            "default-score",
            ["score", "--model", model, "--texts", _long_text(out), "--languages", "[mixed]",
             "--sequences", 8],
            lambda r, _: f"loss {_loss(r):.2f}",
        ),
        Step(
            "default-train",
            ["train", "--model", model, "--languages", "[zh]", "--region", core,
             "--optimization.max_steps", 2, "--watch.languages", "[en,zh]",
             "--watch.documents", 2, *saved],
            _trained,
        ),
        Step(
            "default-forgetting",
            ["forgetting", "--base.path", model, "--models", json.dumps(others[:1]),
             "--target", "zh", "--evaluation.languages", "[en,zh]"],
            lambda r, _: f"{len(r['runs'])} models",
        ),
    ]  # fmt: skip


def _long_text(out: Path) -> Path:
    """A folder of one language ``mixed``, long enough for a whole batch: several declarations."""
    folder = out / "texts"
    folder.mkdir(exist_ok=True)
    declarations = Path(freezetrain.__file__).parent / "data" / "udhr"
    parts = [
        (declarations / f"{name}.jsonl").read_text() for name in ("en", "de", "es", "fr", "it")
    ]
    (folder / "mixed.jsonl").write_text("".join(parts))
    return folder


def _comparison(model: str, out: Path) -> Path:
    """A recipe of a comparison, written to ``out``."""
    recipe = {
        "train": {
            "model": {"path": model},
            "languages": ["zh"],
            "optimization": {
                "max_steps": 2, "sequence_length": 128, "micro_batch": 2, "warmup_steps": 1,
            },
            "watch": {"languages": ["en", "zh"], "documents": 2},
        },
        "learning_rates": [1e-5, 1e-4],
        "seeds": [0],
        "variants": {"plain": {}, "pull": {"changes": {"pull": {"strength": 20}}}},
    }  # fmt: skip
    file = out / "compare.yaml"
    file.write_text(json.dumps(recipe))  # which YAML reads
    return file


def _loss(results: Results) -> float:
    losses = [made["loss"] for made in _all(results, "loss")]
    return float(sum(losses) / len(losses))


def _all(value: Any, key: str) -> list[Mapping[str, Any]]:
    """Mappings anywhere in ``value`` that have a number under ``key``."""
    if isinstance(value, Mapping):
        here = [value] if isinstance(value.get(key), float) else []
        return here + [found for part in value.values() for found in _all(part, key)]
    if isinstance(value, list):
        return [found for part in value for found in _all(part, key)]
    return []


def _selected(results: Results, folder: Path) -> str:
    return f"{(folder / 'region.safetensors').stat().st_size / 1e6:.1f} MB"


def _rises(results: Results) -> str:
    rises = [found["mean_rise"] for found in _all(results, "mean_rise")]
    assert rises, "a rise of the loss"
    return f"rise {max(rises):+.2f} nats/byte"


def _trained(results: Results, folder: Path) -> str:
    assert results["forgetting"]["languages"], "watched languages"
    losses = results["final_loss"]
    return f"final loss {losses:.3f}"


def _verified(results: Results, folder: Path) -> str:
    assert results["moved"] == 0, f"{results['moved']} frozen entries moved"
    return f"0 of {results['checked']:,} moved"


def run(step: Step, out: Path) -> Row:
    """Run it, or read how an earlier start went."""
    folder, kept = out / step.name, out / f"{step.name}.json"
    if kept.is_file():
        return Row(**json.loads(kept.read_text()))
    start, seen, peak = time.monotonic(), "", 0
    if step.kill_at is not None:
        _started(step, folder, out, step.kill_at)
        seen = "killed, then "
    code, peak = _started(step, folder, out, None)
    passed = code == 0
    if passed:
        try:
            seen += step.check(json.loads((folder / "results.json").read_text()), folder)
            if step.name == "resume":
                _same(out / "train" / "model", folder / "model")
                seen += ", weights as uninterrupted"
        except (AssertionError, KeyError) as error:
            passed, seen = False, f"{type(error).__name__}: {error}"
    else:
        seen = (out / f"{step.name}.log").read_text().strip().splitlines()[-1][:200]
    row = Row(step.name, round(time.monotonic() - start, 1), round(peak / 1e9, 2), passed, seen)
    kept.write_text(json.dumps(asdict(row)))
    return row


def _same(one: Path, other: Path) -> None:
    mine, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert mine.keys() == theirs.keys()
    differing = [name for name in mine if not mine[name].equal(theirs[name])]
    assert not differing, f"{len(differing)} tensors differ from the uninterrupted run"


def _started(step: Step, folder: Path, out: Path, kill_at: str | None) -> tuple[int, int]:
    """Exit status, and bytes at most of a process; killed once a file of ``kill_at`` is there."""
    arguments = [str(argument) for argument in step.arguments]
    command = [sys.executable, "-m", "freezetrain", *arguments, "--out", str(folder)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    peak = 0
    with (out / f"{step.name}.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        while process.poll() is None:
            peak = max(peak, *map(_held, _family(process.pid)), 0)
            if kill_at is not None and list(folder.glob(kill_at)):
                os.killpg(process.pid, signal.SIGKILL)
                kill_at = None
            time.sleep(0.05)
    return process.returncode, peak


def _family(pid: int) -> list[int]:
    """Processes of the session that ``pid`` leads."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == pid:
            found.append(int(entry.parent.name))
    return found or [pid]


def _held(pid: int) -> int:
    """Bytes at most that a process has held so far."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return 1024 * int(found[1]) if found else 0


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = ["| | seconds | GB | | |", "|---|--:|--:|---|---|"]
    for row in rows:
        mark = "✓" if row.passed else "✗"
        lines.append(
            f"| {row.step} | {row.seconds:.0f} | {row.gigabytes:.1f} | {mark} | {row.seen} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--out", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--other", help="folder of a model with another tokenizer")
    parser.add_argument("--only", default="", help="regular expression: names of steps to run")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for step in steps(given.model, given.other, given.out):
        if re.search(given.only, step.name):
            rows.append(run(step, given.out))
            print(rows[-1], flush=True)
    (given.out / "verbs.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
    print(table(rows))
    sys.exit(not all(row.passed for row in rows))


if __name__ == "__main__":
    main()
