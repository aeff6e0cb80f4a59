"""What a quickstart found, and whether the claims of the paper hold on it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from freezetrain.analysis.effects import NOTHING, LanguageFigures, Rises, rises
from freezetrain.evaluation.equal_gain import loss_at_gain
from freezetrain.report.run import Run

PLAIN = "plain"  # the variant in which nothing is frozen


@dataclass(frozen=True)
class Verified:
    """The exported model of a run against the base, bit for bit."""

    checked: int
    """Entries of the region; of plain training those of the core."""
    moved: int
    """Of these, entries that differ."""
    changed_elsewhere: int
    """Other entries that differ."""


@dataclass(frozen=True)
class Adaptation:
    """One run of further pre-training."""

    run: Run
    seed: int
    final_loss: float | None
    """Of training, nats per token."""
    verified: Verified
    model: str | None = None
    """Folder of the exported model, within the quickstart's; None where it was not kept."""

    def to_dict(self) -> dict[str, Any]:
        results = {
            **self.run.history.to_dict(),
            **self.run.watch,
            "seed": self.seed,
            "final_loss": self.final_loss,
            "verify": asdict(self.verified),
        }
        return results if self.model is None else results | {"model": self.model}


@dataclass(frozen=True)
class Variant:
    """Runs that differ in their data order alone; the first is the one that is shown."""

    name: str
    runs: Sequence[Adaptation]

    @property
    def first(self) -> Adaptation:
        return self.runs[0]

    def to_dict(self) -> dict[str, Any]:
        return self.first.to_dict() | {"repeats": [run.to_dict() for run in self.runs[1:]]}


@dataclass(frozen=True)
class Observation:
    """A claim of the paper, whether it holds here, and the figures that say so."""

    claim: str
    holds: bool
    seen: str


def observe(
    ablation: Mapping[str, LanguageFigures], variants: Sequence[Variant]
) -> list[Observation]:
    """``ablation``: region zeroed, or NOTHING → figures of every language."""
    core, random, bottom = (
        rises(ablation[NOTHING], ablation[name]) for name in ("core", "random", "bottom")
    )
    (plain,) = (variant for variant in variants if variant.name == PLAIN)
    frozen = [variant for variant in variants if variant.name != PLAIN]
    return [
        _harm("Zeroing the core region hurts every language more than a random region",
              core, random),
        _harm("Zeroing the lowest scores does less harm than zeroing the core", core, bottom),
        _bits_kept(frozen, plain),
        *(_forgetting(variant, plain) for variant in frozen),
    ]  # fmt: skip


def _harm(claim: str, core: Rises, control: Rises) -> Observation:
    higher = sum(core[language] > control[language] for language in core)
    return Observation(
        claim,
        higher == len(core),
        f"mean rise {fmean(core.values()):+.3f} against {fmean(control.values()):+.3f} nats per "
        f"byte, higher in {higher} of {len(core)} languages",
    )


def _bits_kept(frozen: Sequence[Variant], plain: Variant) -> Observation:
    verified = [run.verified for variant in frozen for run in variant.runs]
    moved, checked = sum(v.moved for v in verified), sum(v.checked for v in verified)
    control = plain.first.verified
    return Observation(
        "Frozen entries stayed bit-identical through training",
        moved == 0,
        f"moved: {moved:,} of {checked:,} (runs: {len(verified)}); of the core in plain training: "
        f"{control.moved:,} of {control.checked:,}",
    )


def _forgetting(frozen: Variant, plain: Variant) -> Observation:
    """Compared at equal gain, seed by seed: who learns less of the target forgets less anyway.

    The gain is the most that both runs of a seed reach. The claim holds if it does for every seed.
    """
    region = frozen.name.removesuffix(" frozen")
    claim = f"Freezing the {region} reduces forgetting at equal target gain"
    pairs = [
        _at_equal_gain(with_freeze.run, without.run)
        for with_freeze, without in zip(frozen.runs, plain.runs, strict=True)
    ]
    compared = [pair for pair in pairs if pair is not None]
    if len(compared) < len(pairs):
        return Observation(claim, False, "the target was not learnt")
    gains, losses, controls = zip(*compared, strict=True)
    seen = (
        f"at a gain of {fmean(gains):.3f} nats per byte, mean loss of the held-out languages "
        f"{fmean(losses):+.4f}, {fmean(controls):+.4f} in plain training"
    )
    if min(controls) <= 0:
        return Observation(claim, False, f"{seen}: nothing to reduce")
    changes = [loss / control - 1 for loss, control in zip(losses, controls, strict=True)]
    by_seed = ", ".join(f"{change:+.1%}" for change in changes)
    holds = all(change < 0 for change in changes)
    return Observation(claim, holds, f"{seen}; by seed {by_seed}")


def _at_equal_gain(frozen: Run, plain: Run) -> tuple[float, float, float] | None:
    """The largest gain that both reach, and the mean loss of each there; None without a gain."""
    gain = min(max(_gains(run)) for run in (frozen, plain))
    if gain <= 0:
        return None
    with_freeze, without = _loss_at(frozen, gain), _loss_at(plain, gain)
    return None if with_freeze is None or without is None else (gain, with_freeze, without)


def _gains(run: Run) -> list[float]:
    return [evaluation.forgetting.target_gain or 0.0 for evaluation in run.evaluations]


def _loss_at(run: Run, gain: float) -> float | None:
    steps = [evaluation.step for evaluation in run.evaluations]
    losses = [evaluation.forgetting.mean for evaluation in run.evaluations]
    point = loss_at_gain(steps, _gains(run), losses, gain)
    return None if point is None else point.loss
