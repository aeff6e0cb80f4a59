"""The recipe of `freezetrain rehearse`."""

from dataclasses import dataclass, field
from typing import ClassVar

from freezetrain.recipe.check import check
from freezetrain.recipe.optimization import Engine
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.recipe.text_types import LocalPath, Name

_MOST_SEQUENCES = 10**8  # what each is given is in memory


@dataclass
class RehearseRecipe:
    """Have the base draw sequences to rehearse, and keep what it says at each of their places."""

    # May be others when a run is resumed: they do not change what is drawn.
    changeable: ClassVar = ("engine.devices", "workers", "cache")

    model: ModelSource
    """The base, whole on each device."""
    languages: list[Name] = field(default_factory=list)
    """Languages to keep: sequences begin with first tokens of their sentences. Empty: none, and the
    base says what it likes; with texts, all that they hold."""
    prompts: TextSource = field(default_factory=TextSource)
    """Texts of which sentences of training documents begin sequences of the languages."""
    prompt_tokens: int = 8
    """First tokens of a sentence that begin a sequence; after them the base draws every token."""
    from_bos: float | None = None
    """Share of the sequences that begin with BOS alone (EOS where the tokenizer has no other), in
    [0, 1]: what the base says unasked. None: 0.5 with languages, since it is the base's own mixture
    that forgetting is measured on, but a large model says mostly English; 1 without."""
    texts: TextSource | None = None
    """Real texts: sequences are cut from their training documents, and nothing is drawn; the base
    only says its next tokens' distribution at each place. For replay by KL. None: draw."""
    sequences: int = 2000
    """Sequences in all; of texts, an equal share of each language, or all that it has."""
    sequence_length: int = 512
    """Tokens of a sequence at most, the given ones included; a drawn EOS ends it earlier."""
    temperature: float = 1.0
    """Logits are divided by it before drawing; 1 is the base's own distribution. What is kept of
    each place is that of 1 in any case."""
    k: int = 64
    """Likeliest tokens of which log-probabilities are kept at each place; all others are one."""
    batch: int = 64
    """Sequences drawn at once on a device, and in one file."""
    seed: int = 0
    """Seed of what is drawn, and of the choice of prompts and texts."""
    engine: Engine = field(default_factory=Engine)
    """On how many devices; each takes its turn at whole files."""
    cache: LocalPath | None = None
    """Folder of tokenized texts, which runs share. None: FREEZETRAIN_CACHE, or freezetrain in the
    user's cache."""
    workers: int | None = None
    """Processes that tokenize texts. None: one for each core."""

    def __post_init__(self) -> None:
        given = self.languages
        check(len(set(given)) == len(given), "languages", "each named once", given)
        check(self.prompt_tokens >= 1, "prompt_tokens", "1 or more", self.prompt_tokens)
        share = self.from_bos is None or 0 <= self.from_bos <= 1
        check(share, "from_bos", "in [0, 1]", self.from_bos)
        few = 1 <= self.sequences <= _MOST_SEQUENCES
        check(few, "sequences", f"from 1 to {_MOST_SEQUENCES:,}", self.sequences)
        check(self.sequence_length >= 2, "sequence_length", "2 or more", self.sequence_length)
        check(0 < self.temperature < 1e3, "temperature", "a number above 0", self.temperature)
        check(self.k >= 1, "k", "1 or more", self.k)
        check(self.batch >= 1, "batch", "1 or more", self.batch)
        check(0 <= self.seed < 2**32, "seed", "from 0 to 2**32 - 1", self.seed)
        check(self.workers is None or self.workers >= 1, "workers", "1 or more", self.workers)
        self.engine.require_whole_untrained()
        if self.texts is not None:
            self._check_texts()
        else:
            self._check_prompts()

    @property
    def bos_share(self) -> float:
        """``from_bos``, with None resolved."""
        if self.from_bos is not None:
            return self.from_bos
        return 0.5 if self.languages else 1.0

    @property
    def bos_sequences(self) -> int:
        """Sequences that begin with BOS alone."""
        return 0 if self.texts is not None else round(self.bos_share * self.sequences)

    def _check_texts(self) -> None:
        expected = "left out where texts are given, of which nothing is drawn"
        unused = {"prompts": TextSource(), "prompt_tokens": 8, "from_bos": None, "temperature": 1.0}
        for name, default in unused.items():
            value = getattr(self, name)
            check(value == default, name, expected, value)
        enough = self.sequences >= len(self.languages)
        expected = f"as many as languages, {len(self.languages)}, or more"
        check(enough, "sequences", expected, self.sequences)

    def _check_prompts(self) -> None:
        room = self.sequence_length - 2  # BOS, and a token that is drawn
        if not self.languages:
            expected = "left out, or 1, where no languages are given"
            check(self.bos_share == 1, "from_bos", expected, self.from_bos)
            expected = "left out where no languages are given that they are for"
            check(self.prompts == TextSource(), "prompts", expected, self.prompts)
            return
        prompted = self.sequences - self.bos_sequences
        expected = (
            f"more, or from_bos less: {prompted} begin with prompts, and there are "
            f"{len(self.languages)} languages"
        )
        check(prompted >= len(self.languages), "sequences", expected, self.sequences)
        expected = f"at most {room}, so that a sequence of {self.sequence_length} tokens has room"
        check(self.prompt_tokens <= room, "prompt_tokens", expected, self.prompt_tokens)
