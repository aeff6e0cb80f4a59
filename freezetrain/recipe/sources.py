"""Which model, and which texts."""

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from freezetrain.errors import UserError
from freezetrain.language_names import check_evaluated
from freezetrain.recipe.check import check
from freezetrain.recipe.text_types import Fields, LocalPath, Name

Dtype = Literal["float32", "bfloat16", "float16", "stored"]

Attention = Literal["auto", "flash_attention_2", "sdpa", "eager"]


BUILT_IN_MODEL = "built-in"
"""Stands for the folder of the base that comes with freezetrain, wherever that is installed."""


def model_place(path: str) -> str:
    """``path``, or the folder that it stands for."""
    return str(files("freezetrain") / "base") if path == BUILT_IN_MODEL else path


@dataclass
class ModelSource:
    """A Hugging Face causal language model."""

    path: LocalPath
    """Folder in Hugging Face format, an id on the hub, or built-in: the small base that comes with
    freezetrain (./built-in is a folder of that name)."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "float32"
    """Type that the weights are held in; stored: the one they were saved in."""
    attention: Attention = "auto"
    """How attention is computed. auto: as transformers chooses, scaled_dot_product_attention for
    most; to train in 16 bits on a GPU, flash attention where it is installed."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Only for models whose code you have read."""

    @property
    def place(self) -> str:
        """The folder or the id on the hub that ``path`` says."""
        return model_place(self.path)


@dataclass
class TextSource:
    """Texts of several languages: a folder with one file a language, or a data set of the hub."""

    folder: LocalPath | None = None
    """Folder of <language>.jsonl, .ndjson, .json, .txt, .parquet, .dev or .devtest, also .gz, .xz,
    .bz2, .zst; or with a folder <language>/ of such files, also in folders within it. None: the
    Universal Declaration of Human Rights in 30 languages, which comes with freezetrain."""
    hub: LocalPath | None = None
    """Id of a data set on the hub, or a folder in the hub's layout, instead of folder."""
    hub_config: str = "{language}"
    """Configuration of the data set that holds a language's texts; {language} is its name."""
    hub_split: str = "train"
    """Split of the data set that is read."""
    revision: str | None = None
    """Branch, tag or commit of the data set."""
    streaming: bool = False
    """Read a data set over the network as far as documents says, rather than download it. Without
    documents, which `train` alone takes: read and tokenize while training, without an end; where
    the texts end, they begin again. Files of a folder too."""
    names: dict[Name, str] = field(default_factory=dict)
    """What the folder or data set calls a language, where it is not the language's name here."""
    text_field: Fields = "text"
    """Field of the text in JSONL and Parquet files and in data sets: a name, or the names on the
    way to it with dots between them (meta.text). It holds a text, or a list of texts that are
    joined. [title, body]: several, joined; of these one may be null."""
    text_separator: str | None = None
    """What stands between texts that are joined; those of white space alone are left out. None: an
    empty line."""
    messages_field: str | None = None
    """Field of a conversation, instead of text_field: a list of {role, content}, or of {from,
    value} as ShareGPT has it. Its text is what the tokenizer's chat template makes of it; all of
    its tokens are trained on, and evaluated."""
    key_field: str | None = None
    """Field that names a document, the same in parallel languages; decides the split into train
    and test. None: the text itself."""
    test_one_in: int = 4
    """One document in this many is held out for evaluation. 0: none, all are for training. 1: all,
    none is for training."""
    txt_documents: Literal["paragraphs", "lines"] = "paragraphs"
    """What is a document in a .txt file: a paragraph, up to a blank line, or a line. Its field line
    is the number of its first line. (In FLORES-200's .dev and .devtest a document is a line.)"""
    documents: int | None = None
    """Read at most this many documents of each language, the first ones. None: all."""
    bad_lines: Literal["stop", "skip"] = "stop"
    """What to do about a line of a JSONL file that is no JSON object with a text: stop, or skip
    and count it."""

    def __post_init__(self) -> None:
        check(self.test_one_in >= 0, "test_one_in", "0 or more", self.test_one_in)
        if self.messages_field is not None:
            check(self.messages_field != "", "messages_field", "the name of a field", "")
            expected = "left out where messages_field is given"
            check(self.text_field == "text", "text_field", expected, self.text_field)
        check(self.key_field != "", "key_field", "the name of a field, or left out", "")
        names = self.document_fields
        expected = "the name of a field, or a list of different ones"
        valid = names and all(names) and len(set(names)) == len(names)
        check(bool(valid), "text_field", expected, self.text_field)
        few = self.documents is None or self.documents >= 1
        check(few, "documents", "1 or more", self.documents)
        expected = "left out where hub names a data set"
        check(self.hub is None or self.folder is None, "folder", expected, self.folder)
        if self.streaming:
            expected = "given, or folder, to read texts by streaming"
            check(self.hub is not None or self.folder is not None, "hub", expected, self.hub)
            expected = "left out where a folder is read by streaming"
            few = self.documents is None or self.hub is not None
            check(few, "documents", expected, self.documents)

    def same_place(self, other: "TextSource") -> bool:
        """Whether both read the same files, or the same split of a data set."""
        if self.hub != other.hub or (self.hub and self.hub_split != other.hub_split):
            return False
        if self.folder is None or other.folder is None:
            return self.folder == other.folder
        return Path(self.folder).resolve() == Path(other.folder).resolve()

    @property
    def endless(self) -> bool:
        """Whether texts are read while training, without an end."""
        return self.streaming and self.documents is None

    @property
    def document_fields(self) -> tuple[str, ...]:
        """The fields that a document is made of."""
        if self.messages_field is not None:
            return (self.messages_field,)
        return (self.text_field,) if isinstance(self.text_field, str) else (*self.text_field,)

    @property
    def read_as(self) -> list[Any]:
        """What decides which documents a file or a data set holds, JSON-able.

        Fields that came later are in it where they are given, so that what was kept by it before
        is found.
        """
        how = [self.text_field, self.key_field, self.bad_lines, self.documents]
        later = {name: getattr(self, name) for name in ("text_separator", "messages_field")}
        given = {name: value for name, value in later.items() if value is not None}
        return [*how, given] if given else how

    @property
    def split(self) -> dict[str, Any]:
        """What decides which documents are held out."""
        names = "text_field text_separator messages_field key_field test_one_in txt_documents"
        return {name: getattr(self, name) for name in names.split()}


@dataclass
class EvaluationTexts:
    """Held-out documents to evaluate languages on."""

    texts: TextSource = field(default_factory=TextSource)
    """Texts whose held-out documents are evaluated."""
    languages: list[Name] = field(default_factory=list)
    """Languages to evaluate. Empty: all that the texts hold."""
    documents: int | None = None
    """Evaluate at most this many held-out documents of each language, chosen by a hash of their
    keys: the same ones each time and, with a key_field, in all parallel languages. None: all."""
    max_length: int = 0
    """Tokens of context; longer documents are cut into windows. 0: the model's context, at most
    2048."""
    overlap: int = 1
    """Tokens that the windows of a longer document share, each predicted once: more gives the later
    windows more context and takes more time."""
    batch_tokens: int = 4096
    """Tokens in one evaluation batch; on a CPU at most 1,024."""

    def __post_init__(self) -> None:
        check_evaluated(self.languages)
        few = self.documents is None or self.documents >= 1
        check(few, "documents", "1 or more", self.documents)
        valid = self.max_length == 0 or self.max_length >= 2
        check(valid, "max_length", "0, or 2 or more", self.max_length)
        shared = 1 <= self.overlap <= (self.max_length or self.overlap)
        check(shared, "overlap", "from 1 to max_length", self.overlap)
        check(self.batch_tokens >= 2, "batch_tokens", "2 or more", self.batch_tokens)


def check_held_out(trained: TextSource, watched: TextSource, name: str, other: str) -> None:
    """UserError if held-out documents of ``watched`` would be trained on."""
    if not trained.same_place(watched):
        return
    others = [
        f"{field} ({how!r} and {watched.split[field]!r})"
        for field, how in trained.split.items()
        if how != watched.split[field]
    ]
    if others:
        raise UserError(
            f"{name} and {other} read the same texts but split them by another "
            f"{', '.join(others)}, so that held-out documents would be trained on; give both the "
            "same"
        )
