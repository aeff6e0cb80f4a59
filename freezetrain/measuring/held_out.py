"""Held-out documents of a recipe, and what a model gives on them."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.data.chat import chat_template, conversation_ids, without_cuts, written
from freezetrain.data.texts import Texts, files_not_read, languages_in, read_languages
from freezetrain.data.tokens import document_start
from freezetrain.errors import UserError
from freezetrain.evaluation import Document, DocumentSums, encode_documents, evaluate_documents
from freezetrain.evaluation.documents import Documents
from freezetrain.evaluation.texts import left_out, not_read_note, text_facts
from freezetrain.forward import context_length
from freezetrain.language_names import check_evaluated
from freezetrain.progress import progress_bar
from freezetrain.ranks import is_first_rank
from freezetrain.recipe.sources import EvaluationTexts, TextSource

_NAMED = 3  # documents that are left out

_LONGEST_WINDOW = 2048  # tokens; attention over a longer one costs more than it tells


def evaluated_languages(evaluation: EvaluationTexts) -> list[str]:
    """Names of the languages; no text is read. UserError for one that none of them can have."""
    names = evaluation.languages or languages_in(evaluation.texts)
    check_evaluated(names)
    return names


def held_out_documents(
    evaluation: EvaluationTexts,
    tokenizer: PreTrainedTokenizerBase,
    others: Sequence[PreTrainedTokenizerBase] = (),
) -> dict[str, list[Document]]:
    """Tokenized held-out documents of each language. Raises UserError where one has none.

    ``others``: tokenizers of the models that this one is compared with; a document of which one of
    them leaves nothing to predict is left out for all.
    """
    names = evaluated_languages(evaluation)
    languages = read_languages(evaluation.texts, names, conversations=True)
    for name, language in languages.items():
        if not language.test:
            raise UserError(
                f"language {name!r} has no held-out document among {len(language.train)}; give "
                "it more documents, or another texts.test_one_in (1 holds out all)"
            )
    few = evaluation.documents
    documents: dict[str, list[Document]] = {}
    for name, language in languages.items():
        texts = language.test if few is None else language.test.sample(few)
        try:
            documents[name] = _encoded(texts, evaluation.texts, tokenizer, others)
        except UserError as error:
            raise UserError(f"language {name!r}: {error}") from error
    return documents


def _encoded(
    texts: Texts,
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    others: Sequence[PreTrainedTokenizerBase],
) -> Documents:
    if source.messages_field is not None:
        return _conversations(texts, source, tokenizer, others)
    documents = encode_documents(texts, tokenizer)
    missing = {*documents.left_out}
    missing |= {n for other in others for n in encode_documents(texts, other).left_out}
    if missing != {*documents.left_out}:
        numbers = [n for n in range(len(texts)) if n not in {*documents.left_out}]
        kept = zip(numbers, documents, strict=True)
        documents = Documents(document for n, document in kept if n not in missing)
    documents.left_out = sorted(missing)
    documents.left_out_first = texts.places(documents.left_out[:_NAMED])
    return documents


def _conversations(
    texts: Texts,
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    others: Sequence[PreTrainedTokenizerBase],
) -> Documents:
    """As the chat template writes them; each begins with BOS, as in training."""
    if any(chat_template(other) != chat_template(tokenizer) for other in others):
        raise UserError(
            "texts.messages_field gives conversations, which the tokenizers of the models write by "
            "other chat templates; compare models with the same one, or give texts with a "
            "text_field"
        )
    conversations = list(texts.written(written(source, tokenizer)))
    start = document_start(tokenizer)
    documents = Documents()
    for text, ids in zip(conversations, conversation_ids(conversations, tokenizer), strict=True):
        begun = ids if ids[: len(start)] == start else [*start, *ids]
        documents.append(Document(begun, len(without_cuts(text).encode())))
    return documents


def remarks(
    evaluation: EvaluationTexts,
    tokenizer: PreTrainedTokenizerBase,
    documents: Mapping[str, Sequence[Document]],
) -> list[str]:
    """What of the texts is not evaluated, in sentences; for verbs that show no table of them."""
    not_read = files_not_read(evaluation.texts, evaluation.languages)
    notes = [left_out(text_facts(documents, tokenizer)), not_read_note(not_read)]
    return [note for note in notes if note]


def window_length(evaluation: EvaluationTexts, model: PreTrainedModel) -> int:
    """Tokens of context that documents are evaluated with; ``model`` may be without weights."""
    longest = context_length(model) or _LONGEST_WINDOW
    if evaluation.max_length > longest:
        raise UserError(
            f"max_length is {evaluation.max_length} tokens and the model was built for {longest}; "
            f"use {longest} or less"
        )
    return evaluation.max_length or min(longest, _LONGEST_WINDOW)


SHORTER = "fewer documents or languages to evaluate"


def evaluate_with_bar(
    model: PreTrainedModel,
    documents: Mapping[str, Sequence[Document]],
    evaluation: EvaluationTexts,
    what: str,
    max_length: int | None = None,
) -> dict[str, DocumentSums]:
    """What the model gives on each document, with a progress bar named ``what``.

    ``max_length``: tokens of context. None: as many as ``evaluation`` says of this model.
    """
    with progress_bar(what, is_first_rank(), SHORTER) as progress:
        return evaluate_documents(
            model,
            documents,
            max_length=max_length or window_length(evaluation, model),
            overlap=evaluation.overlap,
            batch_tokens=evaluation.batch_tokens,
            progress=progress,
        )
