"""`freezetrain extend`: add tokens to a base's vocabulary, with rows that its old tokens make up.

A new token's row of embedding and head is the mean of the rows of the tokens that the base has
split it into: Gee et al., "Fast Vocabulary Transfer for Language Model Compression", EMNLP 2022
(industry track). Such rows lie within the convex hull of the old ones, which Mundra et al., arXiv
2407.05841, show to be what matters at the start.
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AddedToken, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.data.texts import Language, read_languages
from freezetrain.errors import UserError
from freezetrain.models import load_model, load_tokenizer, stored_dtypes
from freezetrain.regions import embedding_parameters
from freezetrain.run_folder import Outcome
from freezetrain.tables import Column, Table
from freezetrain.training.export import export
from freezetrain.user_files import read_text, reading
from freezetrain.vocabulary.learned_tokens import Learned, learn_tokens
from freezetrain.vocabulary.recipe import ExtendRecipe


def tokens_in(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The tokens of a file, one a line. UserError, with its number, for a line that is none."""
    with reading("the new tokens in", path, "give a text file, in UTF-8, of one token a line"):
        lines = read_text(path, "utf-8-sig").splitlines()
    if not lines:
        raise UserError(f"{path} is empty; give one new token a line")
    known, first = tokenizer.get_vocab(), dict[str, int]()
    for number, token in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if not token.strip():
            raise UserError(f"{where} is empty; give one new token a line")
        if not token.isprintable():
            raise UserError(f"{where}: {token!r} holds what no text shows; give words of text")
        if token in first:
            raise UserError(f"{where} repeats {token!r} of line {first[token]}; take one away")
        if token in known or len(tokenizer.encode(token, add_special_tokens=False)) == 1:
            raise UserError(f"{where}: {token!r} is a token of the tokenizer already; take it away")
        first[token] = number
    return lines


def with_file_tokens(tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> None:
    """Add ``tokens``, which are then matched in the text wherever they occur."""
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])


def with_learned_tokens(
    tokenizer: PreTrainedTokenizerBase, learned: Learned
) -> PreTrainedTokenizerBase:
    """A tokenizer that goes on merging where ``tokenizer`` ends; all old tokens keep their ids.

    UserError where transformers does not load what the new merges make of it.
    """
    old = tokenizer.get_vocab()
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = Path(folder) / "tokenizer.json"
        state = json.loads(file.read_text(encoding="utf-8"))
        model = state["model"]
        # Added tokens too: else they would be counted from the end of the vocabulary again.
        model["vocab"] |= {added["content"]: added["id"] for added in state["added_tokens"]}
        first = max(old.values()) + 1
        model["vocab"] |= {token: first + n for n, token in enumerate(learned.tokens)}
        pairs = [list(pair) for pair in learned.merges]
        if model["merges"] and isinstance(model["merges"][0], str):
            pairs = [" ".join(pair) for pair in learned.merges]  # type: ignore[misc]
        model["merges"] += pairs
        file.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        expected = Tokenizer.from_file(str(file)).get_vocab()
        extended = AutoTokenizer.from_pretrained(folder)
    vocabulary = extended.get_vocab()
    wanted = old | {token: first + n for n, token in enumerate(learned.tokens)}
    if not vocabulary == expected == wanted:
        raise UserError(
            f"transformers' {type(tokenizer).__name__} does not keep the tokens' ids with new "
            "merges; give the new tokens in a file"
        )
    return extended


@torch.no_grad()
def grow(model: PreTrainedModel, old_tokens: int, pieces: list[list[int]], multiple_of: int) -> int:
    """Give ``model`` a row for each new token, the mean of the rows ``pieces``; its rows then.

    New tokens have the ids from ``old_tokens`` on, whose rows, where the base has such, no token
    used. Rows beyond, which fill up to ``multiple_of``, are the mean of all old tokens' rows.
    """
    wanted = max(rows_of(model), old_tokens + len(pieces))
    model.resize_token_embeddings(wanted, pad_to_multiple_of=multiple_of, mean_resizing=False)
    parameters = dict(model.named_parameters())
    for name in set(embedding_parameters(model).values()):
        table = parameters[name]
        old = table[:old_tokens].float()
        for number, parts in enumerate(pieces):
            table[old_tokens + number] = old[parts].mean(dim=0).to(table.dtype)
        table[old_tokens + len(pieces) :] = old.mean(dim=0).to(table.dtype)
    return rows_of(model)


def rows_of(model: PreTrainedModel) -> int:
    """Tokens that the model has rows for."""
    return model.get_parameter(embedding_parameters(model)["input"]).shape[0]


def bytes_per_token(tokenizer: PreTrainedTokenizerBase, language: Language) -> float | None:
    """Of the held-out documents; None where there are none."""
    texts = list(language.test)
    if not texts:
        return None
    tokens = sum(len(tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    return sum(len(text.encode()) for text in texts) / tokens


def run(recipe: ExtendRecipe, folder: Path) -> Outcome:
    base, extended = load_tokenizer(recipe.model), load_tokenizer(recipe.model)
    if not base.is_fast:
        raise UserError(
            f"expected a base with a fast tokenizer, {recipe.model.path} has none; save it with a "
            "tokenizer.json first"
        )
    language = None
    if recipe.language is not None:
        language = read_languages(recipe.texts, [recipe.language])[recipe.language]
    if recipe.tokens is not None:
        tokens = tokens_in(Path(recipe.tokens), base)
        with_file_tokens(extended, tokens)
        pieces = [base.encode(token, add_special_tokens=False) for token in tokens]
    else:
        assert language is not None
        backend: Any = base.backend_tokenizer  # type: ignore[attr-defined]
        learned = learn_tokens(backend, language.to_train(), recipe.learn)
        tokens = learned.tokens
        extended = with_learned_tokens(base, learned)
        pieces = _pieces_of(learned, base)
    # The rows are those of the base's files, bit for bit.
    model = load_model(replace(recipe.model, dtype="stored"))
    first = max(base.get_vocab().values()) + 1
    before = rows_of(model)
    rows = grow(model, first, pieces, recipe.multiple_of)
    export(model, extended, folder / "model", dtype=stored_dtypes(recipe.model) or None)
    results: dict[str, Any] = {
        "added": len(tokens),
        "tokens": tokens,
        "rows_before": before,
        "rows": rows,
        "model": "model",
    }
    sizes: list[tuple[str, float | None, float | None]] = [
        ("tokens", len(base), len(extended)),
        ("rows", before, rows),
    ]
    if language is not None:
        old, new = bytes_per_token(base, language), bytes_per_token(extended, language)
        results |= {"bytes_per_token_before": old, "bytes_per_token": new}
        sizes.append((f"bytes per token, held-out {language.name}", old, new))
    columns = [Column("", 0, text=True), Column("before", 1), Column("after", 2)]
    return Outcome(results, [Table("", columns, sizes), f"model: {folder / 'model'}"])


def _pieces_of(learned: Learned, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Ids of the old tokens that each learned token is made of."""
    known = tokenizer.get_vocab()
    made = {left + right: (left, right) for left, right in learned.merges}

    def split(token: str) -> list[int]:
        if token in made:
            return [number for part in made[token] for number in split(part)]
        if token in known:
            return [known[token]]
        return [known[f"<0x{byte:02X}>"] for byte in token.encode()]

    return [split(token) for token in learned.tokens]
