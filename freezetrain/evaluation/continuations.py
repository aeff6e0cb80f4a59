"""What a model and its base put after the same prompts, and in which language."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal, get_args

from freezetrain.escaping import shortened
from freezetrain.formats import language_and_code, share
from freezetrain.tables import Column, Table

Of = Literal["document", "base", "model"]
"""Whose words: of the document that the prompt begins, of the base, of the adapted model."""

NONE = "none"
"""Stands for the code of a text without a language: empty, without a letter, or of no language."""


@dataclass(frozen=True)
class Text:
    """What stands after a prompt."""

    text: str
    code: str | None
    """Code (ISO 639) of the language that it is in; None: it is in none."""


@dataclass(frozen=True)
class Continued:
    """A prompt, and what stands after it in the document, and by base and model."""

    prompt: str
    document: Text
    base: Text
    model: Text


@dataclass(frozen=True)
class LanguageGeneration:
    """The prompts of one language."""

    code: str
    """Code (ISO 639) that a text in the language has."""
    texts: list[Continued]

    def in_language(self, of: Of) -> float:
        """Share of the texts that are in the language of the prompts."""
        return fmean(code == self.code for code in self._codes(of))

    def instead(self, of: Of) -> dict[str, int]:
        """Other languages → how many texts are in them, the most frequent first."""
        others = Counter(code or NONE for code in self._codes(of) if code != self.code)
        return dict(sorted(others.items(), key=lambda found: (-found[1], found[0])))

    def _codes(self, of: Of) -> list[str | None]:
        return [getattr(one, of).code for one in self.texts]


@dataclass(frozen=True)
class Generation:
    """What a model and its base put after prompts of several languages."""

    languages: dict[str, LanguageGeneration]
    target: str | None

    def mean(self, of: Of) -> float | None:
        """Mean share of the held-out languages; None where the target is the only one."""
        held_out = [found for name, found in self.languages.items() if name != self.target]
        return fmean(found.in_language(of) for found in held_out) if held_out else None

    def same_ground(self, other: "Generation") -> bool:
        """Whether both are of the same prompts and base, and leave out the same target."""

        def ground(generation: Generation) -> Any:
            return generation.target, {
                name: (found.code, [(one.prompt, one.document, one.base) for one in found.texts])
                for name, found in generation.languages.items()
            }

        return bool(ground(self) == ground(other))

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {
            "target": self.target,
            "mean_in_language": {of: self.mean(of) for of in get_args(Of)},
            "languages": {
                name: {
                    "code": found.code,
                    "in_language": {of: found.in_language(of) for of in get_args(Of)},
                    "instead": {of: found.instead(of) for of in get_args(Of)},
                    "texts": [asdict(one) for one in found.texts],
                }
                for name, found in self.languages.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Generation":
        """The inverse of ``to_dict``: shares follow from the texts."""
        languages = {}
        for name, found in data["languages"].items():
            texts = [
                Continued(one["prompt"], **{of: Text(**one[of]) for of in get_args(Of)})
                for one in found["texts"]
            ]
            languages[name] = LanguageGeneration(found["code"], texts)
        return cls(languages, data["target"])


@dataclass(frozen=True)
class TextRow:
    """One prompt, and what a model puts after it: a line of generation.csv."""

    model: str
    language: str
    code: str
    prompt: str
    document: str
    document_code: str | None
    base: str
    base_code: str | None
    continuation: str
    continuation_code: str | None


def text_rows(model: str, generation: Generation) -> list[TextRow]:
    """A row for each prompt."""
    return [
        TextRow(
            model, name, found.code, one.prompt, one.document.text, one.document.code,
            one.base.text, one.base.code, one.model.text, one.model.code,
        )
        for name, found in generation.languages.items()
        for one in found.texts
    ]  # fmt: skip


_Whose = tuple[Of, str]
"""Whose words; of a model with its name."""


@dataclass(frozen=True)
class _Row:
    """One language, or the mean of the held-out ones."""

    language: str
    prompts: int
    shares: dict[_Whose, float | None]
    others: dict[_Whose, str]


def generation_tables(models: Mapping[str, Generation]) -> list[Table]:
    """Languages × models: what share of the texts is in the language of the prompts.

    One table for the models of each base and its prompts.
    """
    groups: list[dict[str, Generation]] = []
    for name, generation in models.items():
        for group in groups:
            if next(iter(group.values())).same_ground(generation):
                group[name] = generation
                break
        else:
            groups.append({name: generation})
    return [_table(group) for group in groups]


def _table(models: Mapping[str, Generation]) -> Table:
    whose: list[_Whose] = [("document", ""), ("base", ""), *(("model", name) for name in models)]
    of_base = next(iter(models.values()))
    rows = []
    for name, base in of_base.languages.items():
        found = {each: models.get(each[1], of_base).languages[name] for each in whose}
        shares = {each: found[each].in_language(each[0]) for each in whose}
        others = {each: _spelt(found[each].instead(each[0])) for each in whose}
        rows.append(_Row(name, len(base.texts), {**shares}, others))
    means = {each: models.get(each[1], of_base).mean(each[0]) for each in whose}
    mean = _Row("", 0, means, dict.fromkeys(whose, ""))
    titles = {"document": "the document", "base": "base"}
    columns = [
        Column("language", lambda row: language_and_code(row.language), text=True),
        Column("prompts", "prompts"),
    ]
    columns += [_share_column(titles.get(of, model), (of, model), mean) for of, model in whose]
    return Table(
        "Share of the texts that are in the language of their prompt",
        columns,
        rows,
        foot="mean of held-out",
        note="Below a share: the other languages, by code, and how many texts are in them. The "
        "document: its own words after the prompt, which tell how sure the identification is.",
        sortable=True,
    )


def _spelt(instead: Mapping[str, int]) -> str:
    return shortened(", ".join(f"{code} {number}" for code, number in instead.items()), 40)


def _share_column(title: str, whose: _Whose, mean: _Row) -> Column:
    return Column(
        title,
        lambda row: row.shares[whose],
        share,
        note=lambda row: row.others[whose],
        foot=mean,
    )


_SHOWN, _LETTERS = 2, 160  # examples of a language on a page, and letters of each


def examples_table(model: str, generation: Generation) -> Table:
    """The first texts of each language, for a page: before and after."""

    def words(of: Of) -> Column:
        return Column(
            {"document": "the document goes on", "base": "base", "model": model}[of],
            lambda row: shortened(getattr(row[1], of).text, _LETTERS) or "–",
            text=True,
            note=lambda row: getattr(row[1], of).code or NONE,
        )

    rows = [
        (name, one) for name, found in generation.languages.items() for one in found.texts[:_SHOWN]
    ]
    columns = [
        Column("language", lambda row: language_and_code(row[0]), text=True),
        Column("prompt", lambda row: shortened(row[1].prompt, _LETTERS), text=True),
        *(words(of) for of in get_args(Of)),
    ]
    return Table(f"Examples: what {model} says", columns, rows)
