"""`freezetrain compare`: variants of a training run, at equal gain of the target language."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from freezetrain.compare.figures import compare_figures
from freezetrain.compare.findings import findings, recommendations
from freezetrain.compare.frontier import compare_variants
from freezetrain.compare.page import render_compare, variants_markdown
from freezetrain.compare.prepare import Prepared, check_variants, prepare
from freezetrain.compare.recipe import REFERENCE, CompareRecipe
from freezetrain.compare.results import Choice, CompareResults, RunResult, VariantFacts
from freezetrain.compare.runs import Run, grid, missing_runs, run_all, runs_together
from freezetrain.compare.tables import csv_columns, terminal_table
from freezetrain.errors import CheckError, UserError
from freezetrain.escaping import visible
from freezetrain.files import write_text
from freezetrain.loggers.opening import require_loggers
from freezetrain.progress import progress_bar
from freezetrain.recipe import yaml12
from freezetrain.report.pictures import FOLDER as PICTURES
from freezetrain.report.pictures import save_pictures
from freezetrain.run_folder import Outcome
from freezetrain.tables import to_csv
from freezetrain.terminal import Terminal

PAGE = "report.html"


def run(recipe: CompareRecipe, folder: Path) -> Outcome:
    """Leaves report.html, runs.csv, variants.md, pictures/, regions/, runs/ and recommended.yaml.

    Each run leaves its figures in a folder of its own as soon as it is done; where those are there
    already, it is not run again.
    """
    train = recipe.train
    require_loggers(train.logger, train.wandb, train.mlflow, connect=True)
    prepared = prepare(recipe, folder)
    runs = grid(recipe, folder / "runs")
    missing = missing_runs(recipe, runs)
    if missing:
        check_variants(recipe, prepared)
    _run_missing(recipe, prepared, missing, len(runs))
    for each in runs:
        each.tidy(recipe.keep_models)  # also of a start that was killed
    results = _results(recipe, prepared, [each.read_result() for each in runs])
    return Outcome(results.to_dict(), _write(results, recipe, prepared, folder))


def _run_missing(
    recipe: CompareRecipe, prepared: Prepared, missing: Sequence[Run], total: int
) -> None:
    """Run them all, then raise the first error that one came to."""
    console = Terminal(stderr=True)
    before, together, failed = total - len(missing), runs_together(recipe), []
    done = before
    plan = f"{total} runs, {before} of them done before; {together} at once"
    console.print(plan)
    shorter = "fewer variants, learning rates or seeds, or more runs at once"
    with progress_bar("compare", bool(missing), shorter) as progress:
        progress(done, total)
        for each, result in run_all(recipe, prepared, missing):
            if isinstance(result, Exception):
                failed.append((each, result))
            else:
                done += 1
                # Those that run together end together: by the first alone all would take longer.
                if done - before >= together or done == total:
                    progress(done, total)
            console.print(f"{each.name}: {_line(result)}")
    if not failed:
        return
    first, error = failed[0]
    if isinstance(error, UserError | CheckError):
        others = f" (and {len(failed) - 1} runs more)" if len(failed) > 1 else ""
        raise type(error)(f"{first.name}{others}: {error}; the other runs are done and kept")
    raise error


def _line(result: RunResult | Exception) -> str:
    if isinstance(result, Exception):
        return f"{type(result).__name__}: {result}"
    if result.failed is not None:
        return result.failed
    return f"gain {result.gain:+.4f}, mean held-out loss {result.mean:+.4f} nats per byte"


def _results(
    recipe: CompareRecipe, prepared: Prepared, runs: Sequence[RunResult]
) -> CompareResults:
    variants = {name: _variant_facts(recipe, prepared, name) for name in recipe.variants}
    return CompareResults(
        model=prepared.model,
        target=recipe.target,
        languages=list(prepared.base),
        learning_rates=recipe.learning_rates,
        seeds=recipe.seeds,
        variants=variants,
        runs=runs,
        base={name: sums.figures().nll_per_byte for name, sums in prepared.base.items()},
        comparison=compare_variants(runs, reference=REFERENCE, gain=recipe.gain, variants=variants),
        settings=asdict(recipe),
    )


def _variant_facts(recipe: CompareRecipe, prepared: Prepared, name: str) -> VariantFacts:
    return VariantFacts(
        region=recipe.variants[name].region,
        frozen=prepared.frozen.get(name),
        changes=recipe.variants[name].changes,
        trained_on_old=recipe.old_share(name),
        reads_old=recipe.reads_old(name),
    )


def _write(
    results: CompareResults, recipe: CompareRecipe, prepared: Prepared, folder: Path
) -> list[Any]:
    """Leave all files, and hand back what is shown."""
    render_compare(results, folder / PAGE)
    write_text(folder / "runs.csv", to_csv(csv_columns(results), results.runs))
    write_text(folder / "variants.md", variants_markdown(results))
    save_pictures(compare_figures(results), folder / PICTURES)
    display: list[Any] = [] if results.comparison.main is None else [terminal_table(results)]
    display += [*findings(results), *recommendations(results)]
    path = folder / "recommended.yaml"
    path.unlink(missing_ok=True)  # of fewer runs
    if choice := results.comparison.recommendation["any"]:
        _write_recipe(recipe, prepared, choice, path)
        display.append(f"a recipe of {choice.variant}, for freezetrain train: {path}")
    return [*display, f"report: {folder / PAGE}"]


def _write_recipe(recipe: CompareRecipe, prepared: Prepared, choice: Choice, path: Path) -> None:
    """The recipe by which `freezetrain train` trains the variant as it was compared."""
    name, seed = choice.variant, recipe.seeds_of(choice.variant)[0]
    training = recipe.training(name, choice.learning_rate, seed, prepared.folder)
    training = replace(training, watch=recipe.train.watch)
    head = f"# freezetrain train: {visible(name)}, which freezetrain compare recommends\n"
    write_text(path, head + yaml12.dump(asdict(training)))
