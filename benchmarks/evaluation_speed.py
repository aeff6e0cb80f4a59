"""Evaluating many languages, beside a loop over padded batches.

``python benchmarks/evaluation_speed.py MODEL TEXTS``. The loop is what research scripts often do:
documents in their order, each cut to the longest length and padded to it, and exp of the mean of
the batches' mean losses for a perplexity. The two take turns in one process. Printed as JSON:
seconds, predicted tokens and positions computed for each of them (more by padding, and by the
context that a long document's next window repeats), the ratio of their tokens per second, and how
far the loop's perplexities are off those of Σ NLL over Σ tokens: for whole documents, and for the
very tokens that it looked at.
"""

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jsonargparse import CLI
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from freezetrain.corpora import read_languages
from freezetrain.evaluation import Document, encode_documents, evaluate
from freezetrain.evaluation.windows import batches, windows
from freezetrain.recipe import TextSource


def padded_loop(
    model: PreTrainedModel,
    documents: Mapping[str, Sequence[Document]],
    max_length: int,
    batch: int,
) -> dict[str, float]:
    """Perplexity of each language, as exp of the mean over batches of a batch's mean loss."""
    found = {}
    with torch.no_grad():
        for language, texts in documents.items():
            losses = []
            for first in range(0, len(texts), batch):
                rows = [document.ids[: max_length + 1] for document in texts[first : first + batch]]
                input_ids = torch.zeros(len(rows), max_length + 1, dtype=torch.int64)
                mask = torch.zeros_like(input_ids)
                for row, ids in enumerate(rows):
                    input_ids[row, : len(ids)] = torch.tensor(ids)
                    mask[row, : len(ids)] = 1
                labels = input_ids.masked_fill(mask == 0, -100)
                input_ids, mask, labels = (t.to(model.device) for t in (input_ids, mask, labels))
                loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
                losses.append(loss.item())
            found[language] = math.exp(statistics.fmean(losses))
    return found


def off(found: Mapping[str, float], right: Mapping[str, float]) -> dict[str, Any]:
    """By how much of the right one each perplexity is off."""
    by_language = {language: found[language] / right[language] - 1 for language in right}
    sizes = [abs(value) for value in by_language.values()]
    return {"languages": by_language, "mean_size": statistics.fmean(sizes), "largest": max(sizes)}


def measure(
    model: str,
    texts: str,
    key_field: str | None = None,
    test_one_in: int = 16,
    languages: list[str] | None = None,
    documents: int = 100,
    max_length: int = 512,
    batch: int = 8,
    rounds: int = 3,
    device: str = "cpu",
) -> None:
    """Evaluate and time.

    Args:
        model: folder or id of a causal language model.
        texts: folder with one file a language.
        key_field: field that names a document.
        test_one_in: one document in so many is evaluated.
        languages: languages to evaluate; all that the folder holds by default.
        documents: held-out documents of each language, the first ones.
        max_length: tokens of context.
        batch: documents in a batch of the loop; as many tokens are in a batch of ours.
        rounds: timed rounds.
        device: where to compute.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).to(device).eval()
    source = TextSource(folder=texts, key_field=key_field, test_one_in=test_one_in)
    held_out = {
        name: encode_documents(language.test[:documents], tokenizer)
        for name, language in read_languages(source, languages or []).items()
    }
    budget = batch * max_length
    every = [document for of_language in held_out.values() for document in of_language]
    cut = [w for number, d in enumerate(every) for w in windows(number, d, max_length)]
    ours = list(batches(sorted(cut, key=lambda window: -len(window.ids)), budget))
    short = {
        name: [Document(document.ids[: max_length + 1], document.bytes) for document in texts]
        for name, texts in held_out.items()
    }
    options = {"max_length": max_length, "batch_tokens": budget}
    seconds: dict[str, list[float]] = {"padded loop": [], "evaluate": []}
    for _ in range(rounds + 1):  # the first is not counted
        for name, times in seconds.items():
            start = time.perf_counter()
            if name == "evaluate":
                right = evaluate(loaded, held_out, **options)
            else:
                loop = padded_loop(loaded, held_out, max_length, batch)
            times.append(time.perf_counter() - start)
    cut_short = evaluate(loaded, short, **options)
    tokens = {
        "padded loop": sum(figures.tokens for figures in cut_short.values()),
        "evaluate": sum(figures.tokens for figures in right.values()),
    }
    positions = {
        "padded loop": len(every) * (max_length + 1),
        "evaluate": sum(len(rows) * (len(rows[0].ids) - 1) for rows in ours),
    }
    given = {  # tokens that are no padding
        "padded loop": tokens["padded loop"] + len(every),
        "evaluate": sum(len(window.ids) - 1 for window in cut),
    }
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    speed = {name: tokens[name] / medians[name] for name in medians}
    pairs = zip(seconds["padded loop"][1:], seconds["evaluate"][1:], strict=True)
    per_second = tokens["evaluate"] / tokens["padded loop"]
    found = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "parameters": loaded.num_parameters(),
        "languages": len(held_out),
        "documents": len(every),
        "seconds": medians,
        "tokens": tokens,
        "positions": positions,
        "padding": {name: 1 - given[name] / positions[name] for name in given},
        "repeated_context": 1 - tokens["evaluate"] / given["evaluate"],
        "tokens_per_second": speed,
        "speed_ratio": speed["evaluate"] / speed["padded loop"],
        "speed_ratio_of_rounds": sorted(loop / own * per_second for loop, own in pairs),
        "perplexity": {name: figures.perplexity for name, figures in right.items()},
        "loop_off": off(loop, {name: figures.perplexity for name, figures in right.items()}),
        "loop_off_same_tokens": off(
            loop, {name: figures.perplexity for name, figures in cut_short.items()}
        ),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    CLI(measure, as_positional=True)
