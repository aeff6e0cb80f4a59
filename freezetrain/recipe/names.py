"""Names that people give to things, as names of files."""

import re


def file_name(name: str) -> str:
    """Letters, digits and ``_ . + -`` of ``name``, all else as one hyphen: ``core-5``."""
    return re.sub(r"[^\w.+]+", "-", name).strip("-")
