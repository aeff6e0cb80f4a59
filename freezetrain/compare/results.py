"""What a comparison leaves for its page and in results.json."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from freezetrain.compare.curves import RunResult
from freezetrain.compare.frontier import AtGain, Comparison, VariantFacts, compare_variants


@dataclass(frozen=True)
class ModelFacts:
    name: str
    parameters: int
    layers: int


@dataclass(frozen=True)
class CompareResults:
    """All figures of `freezetrain compare`; losses and gains in nats per byte."""

    model: ModelFacts
    target: str
    languages: Sequence[str]  # with the target
    learning_rates: Sequence[float]
    seeds: Sequence[int]
    variants: Mapping[str, VariantFacts]
    runs: Sequence[RunResult]
    base: Mapping[str, float]  # language → NLL per byte of the base
    comparison: Comparison
    settings: Mapping[str, Any]  # the recipe

    @property
    def held_out(self) -> list[str]:
        return [code for code in self.languages if code != self.target]

    @property
    def machine(self) -> str:
        return ", ".join(dict.fromkeys(run.machine for run in self.runs if run.machine))

    @property
    def seconds(self) -> float:
        """Of training, all runs together."""
        return round(sum(run.seconds or 0.0 for run in self.runs), 1)

    @property
    def main(self) -> AtGain:
        """At the main gain; only where there is one."""
        main = self.comparison.main
        assert main is not None
        return main

    def to_dict(self) -> dict[str, Any]:
        """As in results.json."""
        return {
            **asdict(self),
            "runs": [run.to_dict() for run in self.runs],
            "machine": self.machine,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CompareResults":
        """Of a results.json, compared anew at its main gain."""
        variants = {name: VariantFacts(**facts) for name, facts in values["variants"].items()}
        runs = [RunResult.from_dict(run) for run in values["runs"]]
        known = values["comparison"]
        comparison = compare_variants(
            runs, reference=known["reference"], gain=known["gain"], variants=variants
        )
        same = ("target", "languages", "learning_rates", "seeds", "base", "settings")
        return cls(
            model=ModelFacts(**values["model"]),
            variants=variants,
            runs=runs,
            comparison=comparison,
            **{name: values[name] for name in same},
        )
