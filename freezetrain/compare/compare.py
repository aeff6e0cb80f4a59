"""`freezetrain compare`: variants of a training run, at equal gain of the target language."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from freezetrain.compare.figures import compare_figures
from freezetrain.compare.frontier import compare_variants
from freezetrain.compare.page import render_compare, to_markdown, write_runs_csv
from freezetrain.compare.prepare import Prepared, check_variants, prepare
from freezetrain.compare.recipe import REFERENCE, CompareRecipe, replayed_share
from freezetrain.compare.runs import Made, Run, grid, missing, run_all, slots
from freezetrain.compare.sentences import summary
from freezetrain.compare.tables import frontier_table
from freezetrain.errors import CheckError, UserError
from freezetrain.files import write_text
from freezetrain.progress import progress_bar
from freezetrain.recipe import yaml12
from freezetrain.report.pictures import FOLDER as PICTURES
from freezetrain.report.pictures import save_pictures
from freezetrain.run_folder import Outcome

PAGE = "report.html"


def run(recipe: CompareRecipe, folder: Path) -> Outcome:
    """Leaves report.html, runs.csv, variants.md, pictures/, regions/, runs/ and recommended.yaml.

    Each run leaves its figures in a folder of its own as soon as it is done; where those are there
    already, it is not run again.
    """
    prepared = prepare(recipe, folder)
    runs = grid(recipe, folder / "runs")
    todo = missing(recipe, prepared, runs)
    if todo:
        check_variants(recipe, prepared)
    _run_missing(recipe, prepared, todo, len(runs))
    for one in runs:
        one.tidy(recipe.keep_models)  # also of a start that was killed
    return _outcome(recipe, folder, prepared, runs)


def _run_missing(
    recipe: CompareRecipe, prepared: Prepared, todo: Sequence[Run], total: int
) -> None:
    """Run them all, then raise the first error that one came to."""
    console = Console(stderr=True)
    done, failed = total - len(todo), []
    about = f"{total} runs, {done} of them done before; {slots(recipe)} at once"
    console.print(about, highlight=False)
    with progress_bar("compare", shown=bool(todo)) as progress:
        progress(done, total)
        for one, made in run_all(recipe, prepared, todo):
            if isinstance(made, Exception):
                failed.append((one, made))
            else:
                done += 1
                progress(done, total)
            console.print(f"{one.name}: {_said(made)}", highlight=False, markup=False)
    if not failed:
        return
    one, error = failed[0]
    if isinstance(error, UserError | CheckError):
        others = f" (and {len(failed) - 1} runs more)" if len(failed) > 1 else ""
        raise type(error)(f"{one.name}{others}: {error}; the other runs are done and kept")
    raise error


def _said(made: Made | Exception) -> str:
    if isinstance(made, Exception):
        return f"{type(made).__name__}: {made}"
    if made["failed"] is not None:
        return str(made["failed"])
    return f"gain {made['gain']:+.4f}, mean held-out loss {made['mean']:+.4f} nats per byte"


def _outcome(
    recipe: CompareRecipe, folder: Path, prepared: Prepared, runs: Sequence[Run]
) -> Outcome:
    """What all runs together say."""
    made = [_row(one) for one in runs]
    variants = {name: _about(recipe, prepared, name) for name in recipe.variants}
    comparison = compare_variants(made, reference=REFERENCE, gain=recipe.gain, variants=variants)
    results: dict[str, Any] = {
        "model": prepared.model,
        "target": recipe.target,
        "languages": list(prepared.base),
        "learning_rates": recipe.learning_rates,
        "seeds": recipe.seeds,
        "variants": variants,
        "runs": made,
        "base": {name: sums.figures().nll_per_byte for name, sums in prepared.base.items()},
        "comparison": comparison,
        "settings": asdict(recipe),
        "machine": ", ".join(dict.fromkeys(one["machine"] for one in made)),
        "seconds": round(sum(one["seconds"] or 0.0 for one in made), 1),
    }
    render_compare(results, folder / PAGE)
    write_runs_csv(results, folder / "runs.csv")
    write_text(folder / "variants.md", to_markdown(results))
    save_pictures(compare_figures(results), folder / PICTURES)
    display: list[Any] = [frontier_table(comparison), *summary(results)]
    path = folder / "recommended.yaml"
    path.unlink(missing_ok=True)  # of fewer runs
    if (found := comparison["recommendation"]["any"]) is not None:
        name, rate = found["variant"], found["learning_rate"]
        _write_recipe(recipe, prepared, name, rate, path)
        display.append(f"a recipe of {name}, for freezetrain train: {path}")
    return Outcome(results, [*display, f"report: {folder / PAGE}"])


def _write_recipe(
    recipe: CompareRecipe, prepared: Prepared, name: str, rate: float, path: Path
) -> None:
    """What `freezetrain train` is told to train the variant as it was compared."""
    seed = recipe.seeds_of(name)[0]
    told = recipe.training(name, rate, seed, prepared.region(name), prepared.scores)
    told = replace(told, watch=recipe.train.watch)
    head = f"# freezetrain train: {name}, which freezetrain compare recommends\n"
    write_text(path, head + yaml12.dump(asdict(told)))


def _row(one: Run) -> dict[str, Any]:
    found = one.found()
    assert found is not None
    known = ("gain", "mean", "worst", "languages", "seconds", "tokens", "failed", "machine")
    about = {"variant": one.variant, "learning_rate": one.learning_rate, "seed": one.seed}
    return about | {name: found[name] for name in known}


def _about(recipe: CompareRecipe, prepared: Prepared, name: str) -> dict[str, Any]:
    variant = recipe.variant(name)
    told = recipe.training(name, recipe.rates_of(name)[0], recipe.seeds_of(name)[0])
    return {
        "region": variant.region,
        "frozen": prepared.frozen.get(name),
        "changes": variant.changes,
        "trained_on_old": replayed_share(told),
        "reads_old": recipe.reads_old(name),
    }
