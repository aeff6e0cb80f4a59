"""What the base and the models gave, kept in a folder: models measured later stand beside them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from freezetrain.errors import UserError
from freezetrain.evaluation import DocumentSums
from freezetrain.evaluation.benchmarks import Score, Scores
from freezetrain.evaluation.texts import TextFacts
from freezetrain.files import checksum, write_json
from freezetrain.measuring.recipe import ForgettingRecipe
from freezetrain.recipe.sources import ModelSource
from freezetrain.user_files import read_json, reading

_REMEDY = "delete the file, the model is then measured anew"


@dataclass(frozen=True)
class Ground:
    """What all models of a comparison are measured on."""

    base: str
    """Fingerprint of the base's weights."""
    documents: dict[str, str]
    """Language → a hash of its documents, in tokens of the base."""
    max_length: int
    """Tokens of context."""

    def require_same(self, now: "Ground", folder: Path) -> None:
        """UserError unless a later start has the same ground."""
        found = {**self.documents, **now.documents}
        others = [name for name in found if self.documents.get(name) != now.documents.get(name)]
        if others:
            raise UserError(
                f"expected the held-out documents that the models in {folder} were measured on, "
                f"got others of {', '.join(others)} (their texts changed, or a tokenizer finds "
                "nothing in some); give --out a new folder"
            )
        if self.base != now.base:
            raise UserError(
                f"expected the base that the models in {folder} were measured against, with the "
                f"fingerprint {self.base[:12]}, got other weights, {now.base[:12]}; give --out a "
                "new folder"
            )


@dataclass(frozen=True)
class Measured:
    """What one model gave."""

    sums: dict[str, DocumentSums]
    texts: list[TextFacts]
    scores: Scores
    generated: dict[str, list[str]]
    """Language → the text after each prompt; empty where nothing was generated."""

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "sums": {name: sums.to_dict() for name, sums in self.sums.items()},
            "texts": [asdict(facts) for facts in self.texts],
            "scores": {
                task: {metric: asdict(score) for metric, score in scores.items()}
                for task, scores in self.scores.items()
            },
            "generated": self.generated,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Measured":
        """The inverse of ``to_dict``."""
        return cls(
            {name: DocumentSums.from_dict(sums) for name, sums in data["sums"].items()},
            [TextFacts(**facts) for facts in data["texts"]],
            {
                task: {metric: Score(**score) for metric, score in scores.items()}
                for task, scores in data["scores"].items()
            },
            data.get("generated", {}),  # which earlier versions did not write
        )


_OF_A_MODEL = {".bin", ".jinja", ".json", ".model", ".py", ".safetensors", ".tiktoken", ".txt"}

Files = dict[str, list[int]]
"""Name of a file of a model's folder → bytes, time of its last change in nanoseconds, CRC-32."""


def files_of(source: ModelSource) -> Files | None:
    """Weights, configuration and tokenizer, all of them read; None where there is no folder."""
    paths = _files(source)
    return None if paths is None else {p.name: [*_stamp(p), checksum(p)] for p in paths}


def _files(source: ModelSource) -> list[Path] | None:
    folder = Path(source.place)
    if not folder.is_dir():
        return None
    of_a_model = (path for path in sorted(folder.iterdir()) if path.suffix in _OF_A_MODEL)
    return [path for path in of_a_model if path.is_file()]


def _stamp(path: Path) -> list[int]:
    facts = path.stat()
    return [facts.st_size, facts.st_mtime_ns]


def outdated(recipe: ForgettingRecipe, folder: Path) -> bool:
    """Whether a model in ``folder`` has changed since it was measured."""
    kept = Kept(folder / "measured")
    return any(kept.changed(place, source) for place, source in enumerate(recipe.models))


class Kept:
    """The files of a folder: base.json, and N.json of the model that stands in the Nth place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def base(self) -> tuple[Ground, Measured] | None:
        """None where it was not measured yet. Raises UserError for a file that cannot be read."""
        held = self._read("base")
        if held is None:
            return None
        with reading("what the base gave in", self._path("base"), _REMEDY):
            return Ground(**held["ground"]), Measured.from_dict(held)

    def keep_base(self, ground: Ground, measured: Measured) -> None:
        self._write("base", {"ground": asdict(ground), **measured.to_dict()})

    def model(self, place: int, source: ModelSource, ground: Ground) -> Measured | None:
        """None where ``source`` was not measured on that ground yet. UserError as ``base``."""
        held = self._read(str(place))
        if held is None:
            return None
        with reading("what a model gave in", self._path(str(place)), _REMEDY):
            same = ModelSource(**held["model"]) == source and Ground(**held["ground"]) == ground
            return Measured.from_dict(held) if same else None

    def changed(self, place: int, source: ModelSource) -> bool:
        """Whether the files of ``source`` are here, and others than those that were measured.

        A file of the same bytes counts as the same one. UserError as ``base``.
        """
        held = self._read(str(place))
        paths = _files(source)
        if held is None or paths is None:
            return False
        with reading("what a model gave in", self._path(str(place)), _REMEDY):
            known = held.get("files")
            if known is None:  # kept by an earlier version, or of the hub
                return False
            if known.keys() != {path.name for path in paths}:
                return True
            return any(
                _stamp(path) != known[path.name][:2] and checksum(path) != known[path.name][2]
                for path in paths
            )

    def keep_model(
        self,
        place: int,
        source: ModelSource,
        ground: Ground,
        measured: Measured,
        files: Files | None,
    ) -> None:
        """``files``: of ``source``, before it was loaded."""
        content = {"model": asdict(source), "ground": asdict(ground), "files": files}
        self._write(str(place), {**content, **measured.to_dict()})

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _read(self, name: str) -> Any:
        path = self._path(name)
        return read_json(path, "what a model gave in", _REMEDY) if path.exists() else None

    def _write(self, name: str, content: Any) -> None:
        self._folder.mkdir(exist_ok=True)
        write_json(self._path(name), content)
