"""`freezetrain rehearse`: pieces of sequences, each written as soon as it is drawn."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.data.tokens import tokenizer_digest
from freezetrain.devices import require_engine, start_ranks
from freezetrain.errors import UserError
from freezetrain.files import remove_unfinished, require_space
from freezetrain.generation.generate import cache_works, end_tokens, require_generate
from freezetrain.models import check_fit, load_model, load_tokenizer, meta_model, on_gpu
from freezetrain.progress import progress_bar
from freezetrain.ranks import (
    current_launch,
    from_all_ranks,
    from_first_rank,
    is_first_rank,
    on_first_rank,
    own_rank,
    together,
)
from freezetrain.recipe.sources import TextSource
from freezetrain.regions.base import base_of
from freezetrain.rehearsal.pieces import (
    Made,
    Piece,
    bytes_of_place,
    piece_file,
    read_piece,
    write_piece,
)
from freezetrain.rehearsal.targets import Targets
from freezetrain.run_folder import Outcome
from freezetrain.sampling.draw import (
    check_drawn,
    draw_sequences,
    seed_of,
    targets_of,
    vocabulary_of,
)
from freezetrain.sampling.figures import outcome_of
from freezetrain.sampling.prompts import Given, Plan, plan_of
from freezetrain.sampling.recipe import RehearseRecipe
from freezetrain.stored_model import say
from freezetrain.training.memory import require_memory

_OTHERWISE = "give texts, of which nothing is drawn"


def run(recipe: RehearseRecipe, folder: Path) -> Outcome:
    """Draw what is not drawn in ``folder`` yet; every rank calls this.

    Raises UserError for what the recipe's parts refuse, before a model is loaded; CheckError for a
    model whose generation differs from its forward pass, or gives nothing finite.
    """
    launch = current_launch()
    require_engine(recipe.engine, launch)
    tokenizer = load_tokenizer(recipe.model)
    shape = meta_model(recipe.model)
    check_fit(shape, tokenizer, recipe.sequence_length)
    if recipe.texts is None:
        require_generate(shape, _OTHERWISE)
    if recipe.k > (vocabulary := vocabulary_of(shape)):
        raise UserError(
            f"k is {recipe.k} and the model has {vocabulary} tokens; use {vocabulary} or less"
        )
    plan = plan_of(recipe, tokenizer)
    todo = [n for n in range(len(plan.pieces)) if not piece_file(folder, n).exists()]
    places = sum(len(plan.pieces[n].tokens) for n in todo) * recipe.sequence_length
    require_space(folder, places * bytes_of_place(vocabulary, recipe.k), "the sequences")
    most = max((len(piece.tokens) for piece in plan.pieces), default=0)
    require_memory(shape, most, recipe.sequence_length, "batch")
    start_ranks(recipe.engine, launch)
    todo = from_first_rank(todo)
    if todo:
        on_first_rank(lambda: remove_unfinished(piece_file(folder, 0).with_name("*")))
        _draw(recipe, folder, plan, tokenizer, todo)
    outcome = Outcome({})  # of the first rank alone, which owns the folder
    with together():
        if is_first_rank():
            outcome = outcome_of(folder, tokenizer)
    return outcome


def _draw(
    recipe: RehearseRecipe,
    folder: Path,
    plan: Plan,
    tokenizer: PreTrainedTokenizerBase,
    todo: Sequence[int],
) -> None:
    """Draw and write the pieces ``todo``; ranks take turns at them."""
    model = on_gpu(load_model(recipe.model))
    made = _made(recipe, plan, tokenizer, model)
    on_first_rank(lambda: _check_there(folder, made, todo))
    length, given = recipe.sequence_length, plan.pieces[todo[0]].tokens
    cache = plan.draws and on_first_rank(lambda: cache_works(model, given, length, _OTHERWISE))
    if plan.draws and not cache:
        say(
            "the model is drawn from without a cache, which takes longer: with it, generate() of "
            "transformers computes something else than the model's forward pass"
        )
    draws = partial(
        draw_sequences,
        model,
        length=length,
        temperature=recipe.temperature,
        ends=end_tokens(tokenizer, model),
        cache=cache,
    )
    rank, ranks = own_rank(), len(from_all_ranks(None))
    total = sum(len(plan.pieces[number].tokens) for number in todo) * recipe.sequence_length
    before = 0
    what = "draw" if plan.draws else "read"
    with progress_bar(what, is_first_rank(), "fewer or shorter sequences") as progress:
        progress(0, total)
        for first in range(0, len(todo), ranks):
            turn = todo[first : first + ranks]
            rows = sum(len(plan.pieces[number].tokens) for number in turn)

            def during(tokens: int, rows: int = rows, before: int = before) -> None:
                progress(before + rows * tokens, total)

            with together():  # each waits for the others of its turn, and none for one that failed
                if rank < len(turn):
                    number = turn[rank]
                    asked = plan.pieces[number]
                    sequences = list(asked.tokens)
                    if plan.draws:
                        seed = seed_of(recipe.seed, number)
                        sequences = draws(asked.tokens, seed=seed, during=during)
                    piece = _piece(asked, sequences, targets_of(model, sequences, recipe.k))
                    if plan.draws and recipe.temperature == 1:
                        check_drawn(piece)
                    write_piece(folder, number, piece, made)
            before += rows * recipe.sequence_length
            progress(before, total)


def _made(
    recipe: RehearseRecipe, plan: Plan, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Made:
    how: dict[str, Any] = {
        "drawn": plan.draws,
        "sequences": recipe.sequences,
        "batch": recipe.batch,
        "seed": recipe.seed,
        "dtype": str(model.dtype).removeprefix("torch."),
        "given": plan.digest,
    }
    if plan.draws:
        how |= {
            "temperature": recipe.temperature,
            "from_bos": recipe.bos_share,
            "prompt_tokens": recipe.prompt_tokens if recipe.languages else 0,
            "own_prompts": recipe.prompts != TextSource(),  # the user's texts, not the Declaration
        }
    return Made(
        base=base_of(model),
        tokenizer=tokenizer_digest(tokenizer),
        vocabulary=vocabulary_of(model),
        k=recipe.k,
        sequence_length=recipe.sequence_length,
        languages=plan.languages,
        pieces=len(plan.pieces),
        how=how,
    )


def _check_there(folder: Path, made: Made, todo: Sequence[int]) -> None:
    """UserError unless the pieces of earlier starts were made as those are that will be."""
    for number in sorted(set(range(made.pieces)) - set(todo)):
        _, earlier, _ = read_piece(folder, number)
        if earlier != made:
            names = ("base", "tokenizer", "vocabulary", "how")
            other = [name for name in names if getattr(earlier, name) != getattr(made, name)]
            raise UserError(
                f"{piece_file(folder, number)} was made by an earlier start with another "
                f"{' and '.join(other) or 'recipe'}: the model, the texts or the tokenizer changed "
                "since; give --out a new folder"
            )


def _piece(given: Given, sequences: Sequence[Tensor], targets: Targets) -> Piece:
    return Piece(
        tokens=torch.cat(list(sequences)),
        starts=torch.tensor([0, *map(len, sequences)]).cumsum(0),
        language=given.language,
        given=torch.full_like(given.language, given.tokens.shape[1]),
        targets=targets,
    )
