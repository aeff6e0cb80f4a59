"""Data sets of the Hugging Face hub, or of a folder in its layout: one configuration a language."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import datasets

from freezetrain.data.reading import AT_ONCE
from freezetrain.data.rows import FEATURES, document, missing_field
from freezetrain.errors import UserError, near_misses
from freezetrain.hub_network import offline_unless_reachable
from freezetrain.places import require_data_set
from freezetrain.recipe.sources import TextSource
from freezetrain.user_files import reading

_VERSION = 1  # of what is kept on disk

T = TypeVar("T")


def configurations(source: TextSource, languages: Sequence[str] = ()) -> dict[str, str]:
    """The data set's configuration of each language.

    Where ``source.hub_config`` has no ``{language}``, one configuration holds one language, which
    is then the one of ``languages``, or the one that ``source.names`` names.

    Raises UserError where the hub or the data set cannot be reached, where no configuration fits,
    and where one would have to hold several languages.
    """
    known = _read(
        source, lambda place: datasets.get_dataset_config_names(place, revision=source.revision)
    )
    before, name_follows, after = source.hub_config.partition("{language}")
    if not name_follows:
        wanted = list(languages) or list(source.names)
        if len(wanted) != 1:
            raise UserError(
                f"hub_config {source.hub_config!r} holds one language, and languages names "
                f"{len(wanted)}; name one, or put {{language}} where the configurations of "
                f"{source.hub} have the language's name: they are {' '.join(known)}"
            )
        _require_config(source.hub_config, known, source)
        return {wanted[0]: source.hub_config}
    languages_by_place = {place: language for language, place in source.names.items()}
    configs = {
        name[len(before) : len(name) - len(after)]: name
        for name in known
        if name.startswith(before) and name.endswith(after) and len(name) > len(before + after)
    }
    if not configs:
        raise UserError(
            f"no configuration of the data set {source.hub} is called like hub_config "
            f"{source.hub_config!r}; they are {' '.join(known)}"
        )
    for place in languages_by_place:
        _require_config(before + place + after, known, source)
    return {languages_by_place.get(place, place): name for place, name in sorted(configs.items())}


def hub_rows(config: str, source: TextSource) -> datasets.Dataset:
    """Documents of one configuration as rows (FEATURES), from the cache of `datasets` if there.

    Raises UserError where the data set cannot be reached or read, has no such split or field, and
    at the first bad document unless ``source.bad_lines`` is skip.
    """
    local = Path(str(source.hub)).is_dir()
    # `datasets` 5.2 does not notice that files of a folder have changed since it read them.
    return (_streamed if local or source.streaming else _downloaded)(config, source)


def _downloaded(config: str, source: TextSource) -> datasets.Dataset:
    _require_split(config, source)
    rows = _read(
        source,
        lambda place: datasets.load_dataset(
            place, config, split=source.hub_split, revision=source.revision
        ),
    )
    _require_fields(rows.features, config, source)
    if source.documents is not None:
        rows = rows.select(range(min(source.documents, len(rows))))
    # Where texts are a column, they stay in the files that `datasets` has made of them.
    column = source.text_field if source.messages_field is None else None
    kept = isinstance(column, str) and isinstance(rows.features.get(column), datasets.Value)
    made = [name for name in FEATURES if name != "text" or not kept]
    paths = [*source.document_fields, *filter(None, [source.key_field])]
    fingerprint = _fingerprint(rows._fingerprint, config, source)
    columns = [path if path in rows.features else path.split(".")[0] for path in paths]
    read = rows.select_columns(list(dict.fromkeys(columns))).map(
        _documents,
        batched=True,
        batch_size=AT_ONCE,
        with_indices=True,
        remove_columns=list(dict.fromkeys(columns)),
        features=datasets.Features({name: FEATURES[name] for name in made}),
        fn_kwargs={"place": f"{source.hub} {config}", "source": source, "made": made},
        new_fingerprint=fingerprint,
    )
    if kept:
        texts = rows.select_columns(column).rename_column(column, "text")
        read = datasets.concatenate_datasets([texts, read], axis=1)
        read._fingerprint = fingerprint
    return read


def _documents(
    batch: Mapping[str, list], numbers: Sequence[int], place: str, source: TextSource, made: list
) -> dict[str, list]:
    """The columns ``made`` of FEATURES, of a batch of rows."""
    items = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    rows = [
        document(item, f"{place} row {number + 1}", source)
        for item, number in zip(items, numbers, strict=True)
    ]
    return {name: [row[name] for row in rows] for name in made}


def _streamed(config: str, source: TextSource) -> datasets.Dataset:
    builder = _read(
        source,
        lambda place: datasets.load_dataset_builder(place, config, revision=source.revision),
    )
    _require_split(config, source)
    files = [Path(file) for part in (builder.config.data_files or {}).values() for file in part]
    known = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()]
    fingerprint = _fingerprint(f"{builder.config_id} {builder.hash} {known}", config, source)

    def rows() -> Iterator[dict]:
        # Not its take(), which asks for one more.
        stream = islice(builder.as_streaming_dataset(source.hub_split), source.documents)
        for number, item in enumerate(stream, 1):
            if number == 1:
                _require_fields(item, config, source)
            yield document(item, f"{source.hub} {config} row {number}", source)

    return _read(
        source,
        lambda place: datasets.Dataset.from_generator(
            rows, features=FEATURES, fingerprint=fingerprint, writer_batch_size=AT_ONCE
        ),
    )


class HubRows:
    """Rows (FEATURES) of one configuration, each with its place, read as a stream from ``at`` on.

    ``at``: where the stream is, as `datasets` says it (None: at the beginning). ``identity``: what
    `datasets` knows the data set by, which changes when it does.
    """

    def __init__(self, config: str, source: TextSource, at: Any = None) -> None:
        self.at = at
        self._config = config
        self._source = source
        self._builder = _read(
            source,
            lambda place: datasets.load_dataset_builder(place, config, revision=source.revision),
        )
        _require_split(config, source)
        self.identity: str = self._builder.config_id

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        source, place = self._source, f"{self._source.hub} {self._config}"
        stream = self._builder.as_streaming_dataset(source.hub_split)
        if self.at is not None:
            stream.load_state_dict(self.at)
        items = ((item, stream.state_dict()) for item in stream)
        while some := _read(source, lambda _: list(islice(items, AT_ONCE))):
            for item, at in some:
                if self.at is None:
                    _require_fields(item, self._config, source)
                row = document(item, f"{place}, a row", source)
                self.at = at
                yield place, row


def _fingerprint(rows: str, config: str, source: TextSource) -> str:
    content = [_VERSION, list(FEATURES), rows, source.hub, config, source.hub_split]
    content += source.read_as
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _read(source: TextSource, read: Callable[[str], T]) -> T:
    """What ``read`` (folder or id) gets from `datasets`; its errors become one sentence."""
    place = str(source.hub)
    local = Path(place)
    require_data_set(place)
    if local.is_dir():
        with reading("the data set in the folder", place, "repair it, or download it again"):
            return _with_innermost_error(lambda: read(str(local)))
    remedy = "check its name, or download it elsewhere and give texts.hub the folder"
    with offline_unless_reachable(), reading("the data set", place, remedy):
        return _with_innermost_error(lambda: read(place))


def _with_innermost_error(read: Callable[[], T]) -> T:
    """What ``read`` gives; of an error that `datasets` made of another, that one is raised."""
    try:
        return read()
    except Exception as error:
        innermost: BaseException = error
        while innermost.__cause__ is not None:
            innermost = innermost.__cause__
            if isinstance(innermost, UserError):
                break
        raise innermost from None


def _require_config(config: str, known: Sequence[str], source: TextSource) -> None:
    if config not in known:
        raise UserError(
            f"the data set {source.hub} has no configuration {config!r}"
            f"{near_misses(config, known)}; it has {' '.join(known)}"
        )


def _require_split(config: str, source: TextSource) -> None:
    splits = _read(
        source,
        lambda place: datasets.get_dataset_split_names(place, config, revision=source.revision),
    )
    if source.hub_split not in splits:
        raise UserError(
            f"the data set {source.hub} has no split {source.hub_split!r} of {config!r}"
            f"{near_misses(source.hub_split, splits)}; it has {' '.join(splits)}"
        )


def _require_fields(fields: Mapping[str, Any], config: str, source: TextSource) -> None:
    """``fields``: the data set's Features, or a document, which may have null on the way to one."""
    for path in (*source.document_fields, *filter(None, [source.key_field])):
        within: Any = fields
        for name in [path] if path in fields else path.split("."):
            if isinstance(within, Mapping) and name not in within:
                raise UserError(
                    f"the data set {source.hub} has no field {missing_field(path, fields, config)}"
                )
            within = within[name] if isinstance(within, Mapping) else None
