"""`freezetrain score`: one score file a language."""

from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.corpora import Language, read_languages
from freezetrain.jobs.outcome import Outcome
from freezetrain.jobs.progress import progress_bar
from freezetrain.models import check_fit, load_model, load_tokenizer, on_gpu
from freezetrain.recipe import ScoreRecipe
from freezetrain.regions import Scores, compute_scores
from freezetrain.sequences.packing import pack


def score_language(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    language: Language,
    recipe: ScoreRecipe,
) -> Scores:
    """Scores of one language over ``recipe.sequences`` of its training sequences, drawn by seed."""
    check_fit(model, tokenizer, recipe.sequence_length)
    packed = pack(
        language.to_train(),
        tokenizer,
        recipe.sequence_length,
        f"the training part of language {language.name!r}",
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    drawn = torch.randperm(len(packed.sequences), generator=generator)[: recipe.sequences]
    batches: list[Tensor] = [packed.sequences[part].long() for part in drawn.split(recipe.batch)]
    with progress_bar(f"score {language.name}") as progress:
        progress(0, len(batches))
        return compute_scores(
            model,
            batches,
            method=recipe.method,
            language=language.name,
            on_batch=lambda done: progress(done, len(batches)),
        )


def run(recipe: ScoreRecipe, folder: Path) -> Outcome:
    tokenizer = load_tokenizer(recipe.model)
    languages = read_languages(recipe.texts, recipe.languages)
    model = on_gpu(load_model(recipe.model))
    table = Table("language", "sequences", "tokens", "mean NLL (nats/token)", "file")
    results = {}
    for name, language in languages.items():
        scores = score_language(model, tokenizer, language, recipe)
        path = folder / f"{name}.safetensors"
        scores.save(path)
        results[name] = {**scores.made, "file": path.name}
        made = scores.made
        loss = "-" if made["loss"] is None else f"{made['loss']:.3f}"  # magnitude reads no text
        table.add_row(name, str(made["sequences"]), str(made["tokens"]), loss, path.name)
    return Outcome({"scores": results}, [table])
