"""`freezetrain train`: further pre-training with a region frozen and other languages watched."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
from huggingface_hub import ModelCard
from torch import nn

from freezetrain.data.texts import progress_bars
from freezetrain.data.tokens import tokenizer_digest
from freezetrain.devices import require_engine
from freezetrain.evaluation import forgetting_table
from freezetrain.evaluation.texts import TextFacts, text_facts, texts_table
from freezetrain.files import require_space, write_text
from freezetrain.loggers.opening import opened, require_loggers
from freezetrain.measuring.held_out import evaluated_languages
from freezetrain.models import check_fit, fetch, load_tokenizer, local_folder
from freezetrain.ranks import current_launch
from freezetrain.recipe import yaml12
from freezetrain.regions import Region, decoder_blocks
from freezetrain.report.page import flat
from freezetrain.report.run import RegionFacts, Rehearsed, Run
from freezetrain.report.runs import PAGE
from freezetrain.report.runs_page import render_runs
from freezetrain.run_folder import Outcome
from freezetrain.stored_model import say
from freezetrain.tables import Column, Table
from freezetrain.terminal import Terminal
from freezetrain.training.checkpoints import latest_checkpoint, step_of
from freezetrain.training.data import TextData, read_data
from freezetrain.training.memory import require_memory
from freezetrain.training.model_card import CARD, model_card
from freezetrain.training.module import CausalLM
from freezetrain.training.parts import Parts, hyperparameters, make_parts
from freezetrain.training.plan import Plan, make_plan
from freezetrain.training.push import push, push_command, require_repository
from freezetrain.training.recipe import Freezing, TrainRecipe
from freezetrain.training.sharded import loader, teacher_of
from freezetrain.training.trainer import fit


def run(
    recipe: TrainRecipe,
    folder: Path,
    table: bool = True,
    progress: bool = True,
    name: str | None = None,
) -> Outcome:
    """Train, or resume the run in ``folder``.

    ``table``: show the texts before training starts, and each evaluation as it is made, and leave a
    report. ``progress``: show bars. ``name``: what loggers call it; None: as the folder.
    """
    launch = current_launch()
    logged = recipe.logger, recipe.wandb, recipe.mlflow
    require_loggers(*logged, connect=launch.rank == 0)
    table = table and launch.rank == 0
    tokenizer = load_tokenizer(recipe.model)
    if not recipe.from_scratch:
        fetch(recipe.model)  # the plan depends on what its files hold
    digest = None if recipe.rehearse is None else tokenizer_digest(tokenizer)
    plan = make_plan(recipe, launch, digest)
    recipe = plan.recipe
    if table and plan.recomputation is not None and plan.recomputation.on:
        say(
            f"gradient checkpointing is {plan.recomputation.said()}; it takes more time, and "
            "engine.gradient_checkpointing: false leaves it out"
        )
    check_fit(plan.model, tokenizer, recipe.optimization.sequence_length)
    require_engine(recipe.engine, launch)
    if recipe.push is not None and launch.rank == 0:
        require_repository(recipe.push)
    length, sequences = recipe.optimization.sequence_length, recipe.optimization.micro_batch
    require_memory(plan.model, sequences, length, "optimization.micro_batch")
    require_space(folder, plan.disk_bytes, "checkpoints and the model")
    if not recipe.watch.off:
        evaluated_languages(recipe.watch)  # before other texts are read, which may take hours
    with progress_bars(shown=progress):
        data = read_data(recipe, tokenizer, plan.world, plan.rehearsal)
    recipe.freeze.check_steps(data.steps)
    if table:
        Terminal().print(data.table())
    region = _region(plan)
    parts = make_parts(plan, tokenizer, data, folder, table, hyperparameters(recipe, region))
    texts: list[TextFacts] = []
    if parts.tracker is not None:
        texts = text_facts(parts.tracker.documents, tokenizer)
        if table:
            Terminal().print(texts_table(texts, "held-out texts"))
    resumed_from = latest_checkpoint(folder)
    L.seed_everything(recipe.optimization.seed, verbose=False)
    step = -1 if resumed_from is None else step_of(resumed_from)
    with opened(*logged, folder, name or folder.resolve().name, step) as loggers:
        trainer = fit(
            loader(recipe, plan.engine),
            data,
            folder,
            parts.in_order(),
            recipe.checkpoint_every,
            progress,
            recipe.engine,
            teacher_of(recipe),
            loggers,
        )
        if parts.brake is not None:
            parts.brake.ensure(trainer)
        parts.export.ensure(trainer)
        parts.record.ensure(trainer)
    trained = Trained(plan, parts, data, texts, region, resumed_from, trainer)
    results, display = trained.results(), [*trained.display(), f"model: {folder / 'model'}"]
    passed = True
    if launch.rank == 0:
        write_text(folder / "model" / CARD, str(trained.card()))
        if recipe.push is not None:
            failure = push(folder / "model", recipe.push)
            results["pushed"] = {"to": recipe.push, "failure": failure}
            display.append(_pushed(folder / "model", recipe.push, failure))
            passed = failure is None
        else:
            display.append(f"upload it: {push_command(folder / 'model')}")
    # A run whose time was used up before its first step has nothing to show.
    if table and parts.tracker is not None and len(parts.tracker.history.evaluations) > 1:
        render_runs([trained.report(folder.resolve().name)], folder / PAGE)
        display.append(f"report: {folder / PAGE}")
    return Outcome(results, display, passed)


@dataclass(frozen=True)
class Trained:
    """A run that has come to its end, for results.json, people and the report."""

    plan: Plan
    parts: Parts
    data: TextData
    texts: list[TextFacts]
    """Held-out; empty where nothing is watched."""
    region: RegionFacts | None
    resumed_from: Path | None
    trainer: L.Trainer

    @property
    def rehearsed(self) -> list[Rehearsed]:
        """KL to the base on its own words, in the course of training; empty without rehearsal."""
        module = self.trainer.lightning_module
        assert isinstance(module, CausalLM)
        return [Rehearsed(*point) for point in module.compared.history]

    def results(self) -> dict[str, Any]:
        """What results.json holds; see docs/results.md."""
        recipe, module = self.plan.recipe, self.trainer.lightning_module
        assert isinstance(module, CausalLM)
        loss = self.trainer.callback_metrics.get("train/loss")  # None if all steps were done before
        results: dict[str, Any] = {
            "resumed_from": None if self.resumed_from is None else self.resumed_from.name,
            "data": self.data.facts(),
            "files_not_read": self.data.not_read,
        }
        if (rehearsal := self.data.rehearsal_facts()) is not None:
            history = [asdict(point) for point in self.rehearsed]
            results["rehearsal"] = rehearsal | {"kl": module.compared.last, "history": history}
        if self.texts:
            results["texts"] = [asdict(facts) for facts in self.texts]
        results |= {
            "steps": self.trainer.global_step,
            "throughput": self.parts.throughput.summary(self.trainer),
            "bad_steps_skipped": module.bad_steps.skipped,
            "final_loss": None if loss is None else loss.item(),
            "model": "model",
        }
        if recipe.lora is not None:
            results["trained_weights"] = self.plan.trained
        if self.region is not None:
            results["frozen_entries"] = self.region.entries
            results["freeze"] = asdict(recipe.freeze)
            results["region"] = asdict(self.region)
        if (pull := self.parts.pull) is not None:
            results["pull"] = {"strength": pull.strength, "distances": pull.distances or None}
        if self.parts.model is not None:
            results["forgetting"] = self.parts.model.forgetting.to_dict()
        if self.parts.forgetting_of_average is not None:
            results["forgetting_of_average"] = self.parts.forgetting_of_average.to_dict()
        if self.parts.brake is not None:
            results["brake"] = self.parts.brake.results()
        return results

    def card(self) -> ModelCard:
        """Of the model that the run leaves."""
        recipe = self.plan.recipe
        return model_card(
            recipe,
            yaml12.dump(asdict(recipe)),
            self.data.facts(),
            self.region,
            self.forgetting_table(),
            local_folder(recipe.model),
        )

    def forgetting_table(self) -> Table | None:
        """Of the model that the run leaves; None where nothing is watched."""
        tracker, model = self.parts.tracker, self.parts.model
        if tracker is None or model is None:
            return None
        base, figures, compared = tracker.base_of(model), model.figures, model.forgetting
        if self.parts.forgetting_of_average is not None and self.parts.export.figures is not None:
            base = tracker.history.base.figures  # of all documents
            figures, compared = self.parts.export.figures, self.parts.forgetting_of_average
        return forgetting_table(base, figures, tracker.target, result=compared)

    def display(self) -> list[Any]:
        """Lines and tables."""
        recipe = self.plan.recipe
        display: list[Any] = []
        if recipe.lora is not None:
            trained = f"{self.plan.trained:,} weights of adapters"
            display.append(f"{trained} trained, and added to the model's")
        if recipe.average_with_base is not None:
            share = recipe.average_with_base
            display.append(f"the model: the base's weights + {share:g} x (trained - base's)")
        if self.region is not None:
            display.append(f"{self.region.entries:,} entries {self.region.frozen}")
        if self.parts.pull is not None and self.parts.pull.distances:
            display.append(_distances_table(self.parts.pull.distances))
        if (table := self.forgetting_table()) is not None:
            display.append(table)
        if self.parts.brake is not None:
            display += self.parts.brake.sentences()
        return display

    def report(self, name: str) -> Run:
        """What the report shows; where something is watched."""
        assert self.parts.tracker is not None
        return Run(
            name,
            self.parts.tracker.history,
            settings=flat(asdict(self.plan.recipe)),
            region=self.region,
            texts=self.texts,
            brake=None if self.parts.brake is None else self.parts.brake.brake,
            average=self.parts.forgetting_of_average,
            rehearsed=self.rehearsed,
        )


def _pushed(folder: Path, name: str, failure: str | None) -> str:
    if failure is None:
        return f"pushed to {name}"
    return (
        f"could not push to {name}: {failure}; the model is whole in {folder}, and this uploads "
        f"it: {push_command(folder, name)}"
    )


def _region(plan: Plan) -> RegionFacts | None:
    if plan.region is None:
        return None
    frozen = frozen_how(plan.recipe.freeze)
    return region_facts(plan.region, plan.model, file=str(plan.recipe.region), frozen=frozen)


def _distances_table(distances: Mapping[str, float]) -> Table:
    columns = [
        Column("weights", 0, text=True),
        Column("distance", 1, lambda share: f"{share:.3%}"),
    ]
    title = "distance to the base, which weights are pulled to, by the base's norm"
    return Table(title, columns, list(distances.items()))


def frozen_how(freezing: Freezing) -> str:
    """What became of the region's entries, as the end of a sentence."""
    how = "frozen" if freezing.clamp is None else f"set to {freezing.clamp:g} and frozen"
    if freezing.first_step:
        how += f" from step {freezing.first_step} on"
    if freezing.last_step:
        return how + f" until step {freezing.last_step}, and trained after it"
    since = "at that step" if freezing.first_step else "in the base"
    return how + (f": each has the bits that it had {since}" if freezing.clamp is None else "")


def region_facts(region: Region, model: nn.Module, *, file: str, frozen: str) -> RegionFacts:
    """What ``region`` is in ``model``, which may be on the meta device."""
    coverage = region.coverage(model)
    blocks = [f"{name}." for name, _ in decoder_blocks(model)]
    by_kind: dict[str, dict[str, float]] = {}
    elsewhere = {}
    for name, share in coverage.tensors.items():
        layer = next((n for n, block in enumerate(blocks) if name.startswith(block)), None)
        if layer is not None:
            kind = name.removeprefix(blocks[layer]).removesuffix(".weight")
            by_kind.setdefault(kind, {})[str(layer)] = share
        elif share:
            elsewhere[name] = share
    return RegionFacts(
        entries=region.count,
        share=coverage.model,
        file=file,
        base=region.base.name if region.base else None,
        digest=region.digest,
        made=region.made,
        frozen=frozen,
        coverage={kind: shares for kind, shares in by_kind.items() if any(shares.values())},
        elsewhere=elsewhere,
    )
