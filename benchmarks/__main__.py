"""All benchmarks, or some: ``python -m benchmarks``. See benchmarks/README.md.

Each runs in a process of its own. What it finds goes to ``benchmarks/results/<device>.json`` as
soon as it is done; the tables of benchmarks/README.md are made from these files.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, section

HERE = Path(__file__).parent
README = HERE / "README.md"
START, END = "<!-- made by python -m benchmarks -->", "<!-- end -->"
RESULTS = HERE / "results"
# Modules with TITLE, `measure(options) -> Results` and `rows(figures) -> list[Row]`; the first
# paragraph of their docstring stands above the table. In the order of the README.
PARTS = ("freezing", "freezing_memory", "pulling", "engines", "scoring", "selecting", "loading",
         "throughput", "startup", "evaluation", "head", "scale")  # fmt: skip


def machine(device: str) -> dict[str, Any]:
    """Where and when, as the tables show it."""
    import torch

    if device == "cuda":
        what = torch.cuda.get_device_name()
    else:
        cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        what = f"{torch.get_num_threads()} cores of {cpu[1] if cpu else platform.processor()}"
    return {"device": what, "torch": f"torch {torch.__version__}", "date": f"{date.today()}"}


def _run(part: str, options: Options) -> None:
    """Run one benchmark in this process and add it to the file of its device."""
    module = import_module(f"benchmarks.{part}")
    result = {"machine": machine(options.device), "found": module.measure(options)}
    path = RESULTS / f"{options.device}.json"
    RESULTS.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    known[part] = result
    path.write_text(json.dumps({p: known[p] for p in PARTS if p in known}, indent=1) + "\n")


def readme() -> str:
    """README.md with the tables of all results between the two marks."""
    sections = []
    for path in sorted(RESULTS.glob("*.json")):
        for part, result in json.loads(path.read_text()).items():
            module = import_module(f"benchmarks.{part}")
            about = (module.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
            title = module.TITLE if path.stem == "cpu" else f"{module.TITLE} ({path.stem})"
            rows = module.rows(result["found"])
            sections.append(section(title, about, result["machine"], rows))
    before, _, rest = README.read_text().partition(START)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{START}\n", *sections, f"{END}{after}"])


def main(only: Sequence[str], device: str, rounds: int) -> None:
    """Run some benchmarks, or all, and write the tables; ``none``: write the tables alone."""
    if list(only) == ["none"]:
        README.write_text(readme())
        return
    unknown = set(only) - set(PARTS)
    if unknown:
        sys.exit(f"no benchmark {sorted(unknown)[0]!r}: expected of {', '.join(PARTS)}")
    failed = []
    for part in only or PARTS:
        print(f"{part} ...", file=sys.stderr, flush=True)
        words = [sys.executable, "-c", _CHILD, part, device, str(rounds)]
        if subprocess.run(words, cwd=HERE.parent, env=dict(os.environ)).returncode:
            failed.append(part)
    README.write_text(readme())
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the others are in {RESULTS}")


_CHILD = """
import sys
from benchmarks.__main__ import _run
from benchmarks.harness import Options
_run(sys.argv[1], Options(device=sys.argv[2], rounds=int(sys.argv[3])))
"""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Run the benchmarks and write the tables."
    )
    parser.add_argument(
        "--only", nargs="*", default=(), help="those to run (default: all); none: just the tables"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=9, help="timed turns of each way")
    main(**vars(parser.parse_args()))
