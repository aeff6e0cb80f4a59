"""`freezetrain quickstart`: the paper in minutes, every part real."""

import shutil
import time
from dataclasses import asdict
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from freezetrain.analysis.dimensions import region_place
from freezetrain.analysis.effects import NOTHING, LanguageFigures, each_alone, effects_table
from freezetrain.analysis.recipe import ScoreRecipe, SelectRecipe
from freezetrain.analysis.score import score_languages
from freezetrain.analysis.select import make_region
from freezetrain.analysis.verify import compare
from freezetrain.data.texts import languages_in, read_languages
from freezetrain.errors import UserError, near_misses
from freezetrain.measuring.held_out import held_out_documents, window_length
from freezetrain.models import check_loads, load_model, load_tokenizer, local_folder, on_gpu
from freezetrain.progress import Stages
from freezetrain.quickstart.observations import PLAIN, Adaptation, Variant, Verified, observe
from freezetrain.quickstart.page import (
    CoreRegion,
    ModelFacts,
    QuickstartResults,
    render_quickstart,
)
from freezetrain.quickstart.recipe import QuickstartRecipe
from freezetrain.quickstart.work import Sizes, Work, fit, left_out, measure, plan_line, seconds_of
from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import BUILT_IN_MODEL, EvaluationTexts, ModelSource
from freezetrain.regions import Region, decoder_blocks
from freezetrain.report.run import FORGETTING, read_runs
from freezetrain.run_folder import Outcome
from freezetrain.scoring import Scores, select
from freezetrain.scoring.scores import language_scores
from freezetrain.terminal import Terminal
from freezetrain.training import train
from freezetrain.training.recipe import TrainRecipe, Watch

EVALUATIONS = 4  # of each training run, the one before the first step not counted

# Half the peak for the small base forgets half as much at the same gain; the other is the paper's.
LEARNING_RATES = {"built-in": 5e-4, "other": 5e-5}

FILE = "core.safetensors"

_COUNTED = 200  # documents that are tokenized to estimate how many sequences there are


def run(recipe: QuickstartRecipe, folder: Path) -> Outcome:
    stages = Stages()
    source = ModelSource(recipe.model or BUILT_IN_MODEL)
    check_loads(source)
    languages = languages_in(recipe.texts)
    _check_languages(recipe, languages)
    with stages("measure the model"):
        asked, work, expected = _work(recipe, source, languages)
        languages = sorted(_in_order(recipe, languages)[: work.languages])
        omitted = left_out(asked, work)
        whole = work.sequences == asked.sequences  # which is an estimate
        Terminal(stderr=True).print(plan_line(omitted, expected, recipe.minutes))
    evaluation = EvaluationTexts(recipe.texts, languages, documents=work.documents)

    with stages(f"1 of 5: score {len(recipe.score_languages)} languages, select the core region"):
        regions = core_and_controls(recipe, source, folder, None if whole else work.sequences)
    model, tokenizer = on_gpu(load_model(source)), load_tokenizer(source)
    with stages(f"2 of 5: zero each region, evaluate {len(languages)} languages"):
        documents = held_out_documents(evaluation, tokenizer)
        zeroed = {NOTHING: Region({}), **regions}
        ablation: dict[str, LanguageFigures] = each_alone(
            model, documents, evaluation, zeroed.items(),
            number=len(zeroed), what="zero each region",
        )  # fmt: skip

    core = regions["core"]
    frozen = {
        PLAIN: None,
        "core frozen": core,
        "core and vocabulary frozen": core | unused_vocabulary(recipe, source),
    }
    variants = []
    for number, (name, region) in enumerate(frozen.items(), start=3):
        with stages(f"{number} of 5: further pre-training on {recipe.target}, {name}"):
            variants.append(adapt(recipe, work, source, evaluation, name, region, core, folder))

    stages.seconds["total"] = round(sum(stages.seconds.values()), 1)
    settings = asdict(optimization(recipe, recipe.seed, work.steps))
    observations = observe(ablation, variants)
    results = QuickstartResults(
        model=ModelFacts(
            name="built-in base" if recipe.built_in else source.path,
            parameters=sum(p.numel() for p in model.parameters()),
            layers=len(decoder_blocks(model)),
            built_in=recipe.built_in,
            folder=str(local_folder(source)),
        ),
        target=recipe.target,
        languages=languages,
        score_languages=recipe.score_languages,
        settings=settings | {"ratio": recipe.ratio, "seeds": work.seeds},
        left_out=omitted,
        expected_seconds=round(expected, 1),
        region=CoreRegion(**vars(region_place(core, regions["random"], model)), file=FILE),
        ablation=ablation,
        variants=variants,
        seconds=stages.seconds,
        observations=observations,
    )
    page = folder / "report.html"
    render_quickstart(results, page)
    display = [
        effects_table(
            "a region set to zero; rise of the loss in nats per byte",
            ablation[NOTHING],
            results.effects,
        ),
        *(f"{'✓' if seen.holds else '✗'} {seen.claim}: {seen.seen}" for seen in observations),
        f"report: {page}",
    ]
    frozen_runs = [run for variant in variants if variant.name != PLAIN for run in variant.runs]
    passed = all(run.verified.moved == 0 for run in frozen_runs)
    return Outcome(results.to_dict(), display, passed=passed)


def _check_languages(recipe: QuickstartRecipe, languages: list[str]) -> None:
    """UserError for a language without texts."""
    if recipe.target not in languages:
        raise UserError(
            f"the target {recipe.target!r} is not among the texts' languages"
            f"{near_misses(recipe.target, languages)}; they are {' '.join(languages)}"
        )
    for language in recipe.score_languages:
        if language not in languages:
            raise UserError(
                f"score_languages has {language!r}, of which there are no texts"
                f"{near_misses(language, languages)}; there are {' '.join(languages)}"
            )


def _in_order(recipe: QuickstartRecipe, languages: list[str]) -> list[str]:
    """First those that are evaluated in any case."""
    first = list(dict.fromkeys([recipe.target, *recipe.score_languages]))
    return [*first, *(name for name in languages if name not in first)]


def _work(
    recipe: QuickstartRecipe, source: ModelSource, languages: list[str]
) -> tuple[Work, Work, float]:
    """All that the recipe asks for, what of it is done, and the seconds that this should take."""
    start = time.perf_counter()
    model = on_gpu(load_model(source))
    loading, tokenizer = time.perf_counter() - start, load_tokenizer(source)
    evaluation = EvaluationTexts(recipe.texts, _in_order(recipe, languages))
    documents = held_out_documents(evaluation, tokenizer)
    length = window_length(evaluation, model)
    speed = measure(model, documents, length, recipe.sequence_length, loading)
    sizes = Sizes(
        scored=[_sequences(recipe, name, tokenizer) for name in recipe.score_languages],
        sequence_length=recipe.sequence_length,
        step_tokens=optimization(recipe, recipe.seed, recipe.steps).step_tokens,
        held_out={name: [len(d.ids) for d in texts] for name, texts in documents.items()},
    )
    asked = Work(
        sequences=min(ScoreRecipe.sequences, max(sizes.scored)),
        documents=max(map(len, documents.values())),
        languages=len(languages),
        evaluations=EVALUATIONS,
        seeds=recipe.seeds,
        steps=recipe.steps,
    )
    work = asked
    if recipe.minutes is not None:
        left = 60 * recipe.minutes - (time.perf_counter() - start)
        least = len({recipe.target, *recipe.score_languages})
        work = fit(asked, sizes, speed, left, least)
    return asked, work, sum(seconds_of(work, sizes, speed).values())


def _sequences(recipe: QuickstartRecipe, language: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """About how many sequences the training texts of ``language`` make."""
    texts = read_languages(recipe.texts, [language])[language].to_train()
    some = texts[:_COUNTED]
    tokens = sum(map(len, tokenizer(some, verbose=False)["input_ids"]))
    return max(1, tokens * len(texts) // len(some) // recipe.sequence_length)


def core_and_controls(
    recipe: QuickstartRecipe, source: ModelSource, folder: Path, sequences: int | None
) -> dict[str, Region]:
    """Score the languages, select the core, and its controls: random and lowest scores.

    ``sequences``: of each language, at most; None: as many as `freezetrain score` takes.
    """
    settings = ScoreRecipe(
        model=source,
        texts=recipe.texts,
        languages=recipe.score_languages,
        sequences=sequences or ScoreRecipe.sequences,
        sequence_length=recipe.sequence_length,
        seed=recipe.seed,
        engine=Engine(devices=1),  # the quickstart is one process
    )
    score_languages(settings, folder / "scores")
    total = Scores.sum(list(language_scores(folder / "scores", recipe.score_languages).values()))
    core = select(total, recipe.ratio)
    return {
        "core": core,
        "random": core.random_like(recipe.seed),
        "bottom": select(total, recipe.ratio, which="bottom"),
    }


def unused_vocabulary(recipe: QuickstartRecipe, source: ModelSource) -> Region:
    """Rows of the tokens that the target language's training text never holds."""
    return make_region(
        SelectRecipe(
            kind="vocabulary",
            model=source,
            texts=recipe.texts,
            language=recipe.target,
            min_count=1,
        )
    )


def optimization(recipe: QuickstartRecipe, seed: int, steps: int) -> Optimization:
    """How every variant is trained."""
    default = LEARNING_RATES["built-in" if recipe.built_in else "other"]
    return Optimization(
        max_steps=steps,
        sequence_length=recipe.sequence_length,
        learning_rate=recipe.learning_rate or default,
        warmup_steps=max(1, steps // 10),
        seed=seed,
    )


def adapt(
    recipe: QuickstartRecipe,
    work: Work,
    source: ModelSource,
    evaluation: EvaluationTexts,
    name: str,
    region: Region | None,
    core: Region,
    folder: Path,
) -> Variant:
    """Further pre-train with ``region`` frozen, or nothing, once for each seed.

    Only the first run's model is kept. Of plain training the ``core`` is compared, to show that it
    moves.
    """
    slug = name.removesuffix(" frozen").replace(" ", "-")
    file = None
    if region is not None:
        file = folder / f"{slug}.safetensors"
        region.save(file)
    runs: list[Adaptation] = []
    for seed in range(recipe.seed, recipe.seed + work.seeds):
        settings = TrainRecipe(
            model=source,
            texts=recipe.texts,
            languages=[recipe.target],
            region=str(file) if file else None,
            optimization=optimization(recipe, seed, work.steps),
            engine=Engine(devices=1),  # the quickstart is one process
            watch=Watch(
                texts=recipe.texts,
                languages=evaluation.languages,
                documents=evaluation.documents,
                every_n_steps=max(1, work.steps // work.evaluations),
            ),
            checkpoint_every=work.steps + 1,  # none: a run of a minute is not resumed
            export_dtype="float32",  # as trained: rounding would hide what has moved a little
        )
        run_folder = folder / (slug if not runs else f"{slug}-seed{seed}")
        outcome = train.run(settings, run_folder, table=False)
        compared = compare(local_folder(source), run_folder / "model", region or core)
        if runs:
            shutil.rmtree(run_folder / "model")
        (run,) = read_runs(run_folder / FORGETTING, name)
        runs.append(
            Adaptation(
                run=run,
                seed=seed,
                final_loss=outcome.results["final_loss"],
                verified=Verified(compared.checked, compared.moved, compared.changed),
                model=None if runs else f"{slug}/model",
            )
        )
    return Variant(name, runs)
