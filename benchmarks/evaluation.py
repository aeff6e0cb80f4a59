"""Evaluation: tokens that count per second by `freezetrain.evaluation.evaluate`, from texts to
perplexities, over those of a loop over padded batches of 8, on the articles of the Universal
Declaration of Human Rights, which are of very mixed length: 4 is four times as many.

The loop is what research scripts often do: each document cut to the context length and padded to
it, or to the longest of its batch, in the order of the file; for a perplexity exp of the mean over
batches of their mean losses. What it cuts off does not count. Beside it lm-evaluation-harness's
rolling log-likelihood, which predicts the very tokens that ``evaluate`` does.
"""

import logging
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import freezetrain
from benchmarks.harness import Options, Results, Row, alternate, ratios, shown
from freezetrain.data.texts import read_languages
from freezetrain.evaluation import Figures, encode_documents, evaluate
from freezetrain.recipe.sources import TextSource

TITLE = "Evaluation"
OURS = "evaluate"
PADDED, LONGEST = "padded to the context", "padded to the longest of a batch"
HARNESS = "lm-evaluation-harness"
BASE = Path(freezetrain.__file__).parent / "base"
LENGTHS, BATCH, GOAL = (128, 512, 1024, 2048), 8, 3.0
LANGUAGES = {"cpu": ("ar", "ru"), "cuda": ("ar", "es", "ru", "zh", "ko", "vi")}
"""On a CPU two whose articles have about as many tokens as those of all 30 languages."""
LARGE: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12}
Texts = Mapping[str, Sequence[str]]


def measure(options: Options, folder: str | None = None) -> Results:
    """Of the texts in the package, or of all in ``folder`` (one file a language)."""
    device = options.device
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    texts = read(folder, LANGUAGES[device] if folder is None else ())
    if device == "cuda":
        config = LlamaConfig(len(tokenizer), max_position_embeddings=max(LENGTHS), **LARGE)
        model = LlamaForCausalLM(config).to(device=device, dtype=torch.bfloat16)
    else:  # rotary positions have no weights: it can be given a longer context, if not use it well
        positions = {"max_position_embeddings": max(LENGTHS)}
        model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32, **positions)
    return measured(model.eval(), tokenizer, texts, LENGTHS, options)


def read(folder: str | None, languages: Sequence[str]) -> dict[str, list[str]]:
    """All documents of each language, in the order of its file."""
    summary = read_languages(TextSource(folder=folder, test_one_in=1), list(languages))
    return {name: list(at_length.test) for name, at_length in summary.items()}


def padded_loop(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    length: int,
    padding: str | bool,
) -> dict[str, float]:
    """Perplexity of each language, as exp of the mean over batches of a batch's mean loss."""
    summary = {}
    for language, documents in texts.items():
        losses = []
        for first in range(0, len(documents), BATCH):
            batch = tokenizer(
                documents[first : first + BATCH],
                padding=padding,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(model.device)
            ids, mask = batch["input_ids"], batch["attention_mask"]
            labels = ids.masked_fill(mask == 0, -100)
            with torch.no_grad():
                losses.append(model(input_ids=ids, attention_mask=mask, labels=labels).loss.item())
        summary[language] = math.exp(statistics.fmean(losses))
    return summary


def ours(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts, length: int
) -> dict[str, Figures]:
    """The figures of each language."""
    documents = {name: encode_documents(at_length, tokenizer) for name, at_length in texts.items()}
    return evaluate(model, documents, max_length=length)


def harness(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Texts, length: int
) -> Callable[[], list[float]]:
    """What gives the log-likelihood of each document, languages one after another."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    options = {"max_length": length, "batch_size": BATCH, "add_bos_token": False}
    lm = HFLM(pretrained=model, tokenizer=tokenizer, device=str(model.device), **options)
    every = [text for documents in texts.values() for text in documents]
    requests = [Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(every)]

    def run() -> list[float]:
        with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # a bar for each document
            return lm.loglikelihood_rolling(requests, disable_tqdm=True)

    return run


def measured(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    lengths: Sequence[int],
    options: Options,
) -> Results:
    """All ways at each context length."""
    sizes = [
        len(ids)
        for documents in texts.values()
        for ids in tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    ]
    return {
        "parameters": model.num_parameters(),
        "languages": len(texts),
        "documents": len(sizes),
        "document_tokens": {
            **dict(zip(("low", "median", "high"), statistics.quantiles(sizes), strict=True)),
            "longest": max(sizes),
        },
        "lengths": {
            str(length): _at(model, tokenizer, texts, sizes, length, options) for length in lengths
        },
    }


def _at(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Texts,
    sizes: Sequence[int],
    length: int,
    options: Options,
) -> dict[str, Any]:
    arguments = (model, tokenizer, texts, length)
    ways: dict[str, Callable[[], Any]] = {
        OURS: partial(ours, *arguments),
        PADDED: partial(padded_loop, *arguments, "max_length"),
        LONGEST: partial(padded_loop, *arguments, True),
    }
    if find_spec("lm_eval"):
        ways[HARNESS] = harness(*arguments)
    places, results = {}, {}
    for name, way in ways.items():
        with counted(model) as count:
            results[name] = way()
        places[name] = sum(count)
    rounds = options.rounds if length <= 512 else min(options.rounds, 5)  # they take long
    seconds = alternate(ways, rounds, device=options.device)
    # The loop predicts from a document's own first token, the others that one too, from BOS.
    cut = sum(min(size, length) - 1 for size in sizes)
    tokens = {name: cut if name in (PADDED, LONGEST) else sum(sizes) for name in ways}
    cost = {name: [s / tokens[name] for s in seconds[name]] for name in ways}
    right = results[OURS]
    summary = {
        "seconds": seconds,
        "tokens": tokens,
        "places": places,
        "tokens_per_second": {name: 1 / statistics.median(cost[name]) for name in ways},
        "times_as_fast": {
            name: at_length for name, at_length in ratios(cost, OURS).items() if name != OURS
        },
        "perplexity": {name: figures.perplexity for name, figures in right.items()},
        "off": {name: off(results[name], right) for name in (PADDED, LONGEST)},
    }
    if HARNESS in ways:
        theirs = -math.fsum(results[HARNESS])
        summary["nll_over_harness"] = math.fsum(figures.nll for figures in right.values()) / theirs
    return summary


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """Places, padding included, of each forward pass."""
    count: list[int] = []

    def note(_: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        count.append((given[0] if given else named["input_ids"]).numel())

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield count
    finally:
        handle.remove()


def off(summary: Mapping[str, float], right: Mapping[str, Figures]) -> dict[str, float]:
    """By what share of the right one perplexities are off: mean over languages, and largest."""
    sizes = [abs(summary[name] / figures.perplexity - 1) for name, figures in right.items()]
    return {"mean": statistics.fmean(sizes), "largest": max(sizes)}


def rows(summary: Results) -> list[Row]:
    """A line for each other way at each length, and one for what the loop gets wrong."""
    size = summary["document_tokens"]
    about = f"{summary['documents']} documents in {summary['languages']} languages"
    about += f" (quartiles {size['low']:.0f}, {size['median']:.0f} and {size['high']:.0f} tokens,"
    about += f" longest {size['longest']:,}), {summary['parameters'] / 1e6:.1f}M parameters"
    table = [Row("On what", about)]
    for length, at_length in summary["lengths"].items():
        for name, times in at_length["times_as_fast"].items():
            computed = {
                way: at_length["places"][way] / at_length["tokens"][way] for way in (name, OURS)
            }
            speeds = (at_length["tokens_per_second"][way] for way in (OURS, name))
            figure = "{}; {:,.0f} against {:,.0f}/s".format(shown(times, 2), *speeds)
            what = f"Context of {length} tokens, over a loop {name}"
            if name == HARNESS:
                what = f"Context of {length} tokens, over {name}"
                table.append(Row(what, figure))
                continue
            what += f", {computed[name]:.1f} places computed for each token that counts"
            met, note = times["median"] >= GOAL, ""
            if not met:
                note = f"evaluate computes {computed[OURS]:.2f} places a token, so that leaving"
                note += f" padding out saves a factor of {computed[name] / computed[OURS]:.1f}"
            table.append(Row(what, figure, f"at least {GOAL:g}", met, note))
        wrong = at_length["off"][PADDED]
        figure = f"{wrong['mean']:.1%} on average, {wrong['largest']:.1%} at most"
        table.append(Row(f"Context of {length} tokens: the loop's perplexities are off by", figure))
    return table
