"""The generation probe: what models put after the first words of held-out documents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from freezetrain.errors import UserError, near_misses
from freezetrain.evaluation import Document
from freezetrain.evaluation.continuations import Continued, Generation, LanguageGeneration, Text
from freezetrain.evaluation.documents import context_token, fingerprint
from freezetrain.generation.greedy import continuations, require_continuable
from freezetrain.measuring.identify import LanguageIdentifier
from freezetrain.measuring.recipe import GenerationProbe
from freezetrain.progress import progress_bar
from freezetrain.ranks import from_all_ranks, is_first_rank, own_rank, patient_group, together

_OTHERWISE = "leave generation out"

_CUT = "\ufffd"  # what decoding makes of a part of a character

Texts = dict[str, list[str]]
"""Language → the text after each of its prompts."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of a document, and what follows in it."""

    text: str
    document: str


class Probe:
    """Prompts of each language, the same for base and models.

    ``documents``: in tokens of the base, whose tokenizer is ``tokenizer``.

    Raises UserError for languages that are not evaluated or not known, and for one of which no
    document is long enough.
    """

    def __init__(
        self,
        settings: GenerationProbe,
        documents: Mapping[str, Sequence[Document]],
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self._settings = settings
        languages = settings.languages or [*documents]
        for name in languages:
            if name not in documents:
                raise UserError(
                    f"generation.languages names {name!r}, which is not among the languages "
                    f"evaluated{near_misses(name, documents)}; they are {' '.join(documents)}"
                )
        self._identify = LanguageIdentifier(languages, settings.codes)
        self.prompts = {
            name: _prompts(settings, name, documents[name], tokenizer) for name in languages
        }

    def require(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """UserError for a model that cannot go on from the prompts; it may be without weights."""
        new_tokens = self._settings.new_tokens
        require_continuable(model, tokenizer, self._given(), new_tokens, _OTHERWISE)

    def texts(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> Texts:
        """What ``model`` puts after the prompts, with a progress bar named ``what``.

        Processes that run together share the prompts: all must call this, and all get the texts.
        Raises as ``continuations``.
        """
        group = patient_group()
        rank, world = own_rank(), len(from_all_ranks(None, group))
        own = self._given()[rank::world]
        shorter = "fewer generation.documents"
        with progress_bar(what, is_first_rank(), shorter) as progress, together(group):
            said = continuations(
                model,
                tokenizer,
                own,
                self._settings.new_tokens,
                batch=self._settings.batch,
                otherwise=_OTHERWISE,
                during=lambda done: progress(done, len(own)),
            )
        everywhere = from_all_ranks(said, group)
        all_texts = iter(
            everywhere[number % world][number // world] for number in range(len(self._given()))
        )
        return {name: [next(all_texts) for _ in prompts] for name, prompts in self.prompts.items()}

    def compare(self, base: Texts, model: Texts, target: str | None) -> Generation:
        """What ``model`` and its base said, and in which languages."""
        languages = {}
        for name, prompts in self.prompts.items():
            said = zip(prompts, base[name], model[name], strict=True)
            texts = [
                Continued(prompt.text, *map(self._text, (prompt.document, before, after)))
                for prompt, before, after in said
            ]
            languages[name] = LanguageGeneration(self._identify.codes[name], texts)
        return Generation(languages, target)

    def _given(self) -> list[str]:
        return [prompt.text for prompts in self.prompts.values() for prompt in prompts]

    def _text(self, text: str) -> Text:
        return Text(text, self._identify(text))


def _prompts(
    settings: GenerationProbe,
    language: str,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Prompt]:
    """Of documents that have all the tokens; which, a hash of them says."""
    start, first = len(context_token(tokenizer)), settings.prompt_tokens
    needed = first + settings.new_tokens

    def decoded(ids: list[int]) -> str:
        return cast(str, tokenizer.decode(ids, skip_special_tokens=True)).strip(_CUT)

    texts = [document.ids[start:] for document in sorted(documents, key=fingerprint)]
    prompts = [
        Prompt(decoded(ids[:first]), decoded(ids[first:needed]))
        for ids in texts
        if len(ids) >= needed
    ]
    prompts = [prompt for prompt in prompts if prompt.text.strip()]
    if not prompts:
        longest = max(len(document.ids) - start for document in documents)
        raise UserError(
            f"language {language!r}: expected a held-out document of {needed} tokens "
            f"(generation.prompt_tokens and new_tokens), the longest has {longest}; give less of "
            "them, or generation.languages without it"
        )
    return prompts[: settings.documents]
