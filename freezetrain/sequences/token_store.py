"""Tokens of one language on disk, read as one stream."""

import json
from pathlib import Path

import numpy as np

from freezetrain.errors import UserError


class TokenStore:
    """The training documents of one language, end to end, as one stream of token ids on disk.

    ``facts`` counts documents, tokens (BOS and EOS included), bytes of UTF-8, words (between white
    space), held_out documents and skipped lines. ``digest`` [hex] tells its content: texts, split
    and tokenizer. Raises UserError where files of it are missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        try:
            kept = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
            self.digest: str = kept["digest"]
            self.facts: dict[str, int] = kept["facts"]
            self._starts = np.load(folder / "starts.npy", mmap_mode="r", allow_pickle=False)
            self._pieces = [
                np.load(
                    piece_folder(folder, number) / "tokens.npy", mmap_mode="r", allow_pickle=False
                )
                for number in range(kept["pieces"])
            ]
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise UserError(
                f"the tokens in {folder} are damaged ({error}); delete the folder, they are then "
                "made anew"
            ) from error
        self._ends = np.cumsum([len(piece) for piece in self._pieces], dtype=np.int64)
        if self._ends[-1] != len(self) or len(self._starts) != self.facts["documents"]:
            raise UserError(
                f"the tokens in {folder} are {self._ends[-1]} and not the {len(self)} that were "
                "written; delete the folder, they are then made anew"
            )

    def __len__(self) -> int:
        return self.facts["tokens"]

    def read(self, first: int, last: int) -> np.ndarray:
        """Token ids ``first`` to ``last``, the last excluded, int64."""
        tokens = np.empty(last - first, dtype=np.int64)
        number = int(np.searchsorted(self._ends, first, side="right"))
        at = first
        while at < last:
            end = int(self._ends[number])
            offset = end - len(self._pieces[number])
            until = min(last, end)
            tokens[at - first : until - first] = self._pieces[number][at - offset : until - offset]
            at, number = until, number + 1
        return tokens

    def starts(self, first: int, last: int) -> np.ndarray:
        """Places in ``first`` to ``last``, the last excluded, at which a document starts, int64."""
        low, high = np.searchsorted(self._starts, [first, last])
        return np.asarray(self._starts[low:high])

    def starts_before(self, places: np.ndarray) -> np.ndarray:
        """How many documents start before each of ``places``."""
        return np.searchsorted(self._starts, places)


def piece_folder(folder: Path, number: int) -> Path:
    """Where the tokens and document starts of one piece of a store's texts are."""
    return folder / f"{number:05d}"
