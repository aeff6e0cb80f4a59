"""Beginnings of held-out pages, so that a real model can be evaluated on a CPU.

    python docs/study/short_pages.py help help_short tr en es fr de it

Of each page of the first folder that the studies hold out, with 700 characters or more, the first
400 are written to the second.
"""

import json
import lzma
import sys
import zlib
from pathlib import Path


def main(source: Path, out: Path, languages: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for language in languages:
        with (
            lzma.open(source / f"{language}.jsonl.xz", "rt", encoding="utf-8") as pages,
            open(out / f"{language}.jsonl", "w", encoding="utf-8") as short,
        ):
            for page in map(json.loads, pages):
                held_out = zlib.crc32(page["page"].encode()) % 16 == 0
                if held_out and len(page["text"]) >= 700:
                    kept = {**page, "text": page["text"][:400]}
                    short.write(json.dumps(kept, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
