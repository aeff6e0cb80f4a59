"""The results as a Markdown table, between two marks in benchmarks/README.md."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Row

START, END = "<!-- made by python -m benchmarks -->", "<!-- end -->"


def table(rows: Iterable[Row]) -> str:
    """One line a row."""
    lines = ["| what | measured | goal | |", "|---|---|---|---|"]
    for row in rows:
        verdict = {None: "", True: "met", False: "**missed**"}[row.met]
        note = f"{verdict}: {row.note}" if verdict and row.note else verdict or row.note
        lines.append(f"| {row.what} | {row.figure} | {row.goal} | {note} |")
    return "\n".join(lines)


def section(title: str, about: str, machine: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """A benchmark's heading, what it is about, where and when it ran, and its table."""
    where = ", ".join(str(part) for part in machine.values())
    return f"## {title}\n\n{about}\n\n*{where}*\n\n{table(rows)}\n"


def write(readme: Path, sections: Iterable[str]) -> None:
    """Put ``sections`` between the marks, all else untouched."""
    before, _, rest = readme.read_text().partition(START)
    _, _, after = rest.partition(END)
    body = "\n".join(sections)
    readme.write_text(f"{before}{START}\n\n{body}\n{END}{after}")
