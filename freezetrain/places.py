"""Where models and data sets are: folders, or ids that the hub or its cache may have.

Nothing here needs torch, so that the command line says what is missing at once.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from freezetrain.errors import UserError, near_misses
from freezetrain.recipe.sources import BUILT_IN_MODEL, ModelSource, TextSource
from freezetrain.user_files import is_file, read_json

COPY = "correct it, or copy the model again from where it came"

_BESIDE = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Files beside config.json that libraries read, without a word of which one they could not."""

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

_COUNTED = {
    re.compile(r"layers?$|^depth$"): 2_000,
    re.compile(r"(label|expert|head|group)s?$"): 20_000,
}
"""Keys of config.json whose number libraries count up to, making something for each, and more than
any model has."""

_POSITIVE = re.compile(
    r"^(num_hidden_layers|n_layers?|num_layers|hidden_size|n_embd"
    r"|d_model|vocab_size|max_position_embeddings|n_positions)$"
)


def require_places(recipe: Any) -> None:
    """UserError unless all models and data sets that a ``recipe`` names are there, or may be."""
    for source in _sources(recipe):
        if isinstance(source, ModelSource):
            require_model(source)
        elif source.hub is not None:
            require_data_set(source.hub)


def _sources(value: Any) -> Iterator[ModelSource | TextSource]:
    if isinstance(value, ModelSource | TextSource):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _sources(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _sources(item)


def require_model(source: ModelSource) -> None:
    """UserError unless there is a model's folder, or an id that the hub or its cache may have."""
    folder = Path(source.place)
    if folder.is_dir():
        check_folder(folder)
        return
    # The library is needed for ids alone, and takes a moment to import.
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE

    from freezetrain.hub_network import can_be_id, why_offline

    if folder.exists() or not can_be_id(source.path):  # the hub need not be asked
        raise UserError(
            f"cannot load a model from {source.path}: there is no such folder"
            f"{_models_like(folder)}; give a folder in Hugging Face format, or an id on the hub"
        )
    if why := why_offline():
        cached = try_to_load_from_cache(source.path, "config.json", revision=source.revision)
        if not isinstance(cached, str):
            raise UserError(
                f"cannot load the model {source.path!r}: there is no such folder"
                f"{_models_like(folder)}, the hub's cache {HF_HUB_CACHE} does not hold it, and "
                f"{why}; check the name, or download it elsewhere and give the folder"
            )


def _models_like(folder: Path) -> str:
    return near_misses(str(folder), [BUILT_IN_MODEL]) or folders_like(folder)


def require_data_set(place: str) -> None:
    """UserError unless there is such a folder, or an id that the hub or a cache may have."""
    if Path(place).is_dir():
        return
    from freezetrain.hub_network import can_be_id, why_offline

    if not can_be_id(place):
        raise UserError(
            f"cannot read the data set {place}: there is no such folder"
            f"{folders_like(Path(place))}; give texts.hub a folder in the hub's "
            "layout, or an id on the hub"
        )
    if (why := why_offline()) and not _data_set_cached(place):
        raise UserError(
            f"cannot read the data set {place!r}: there is no such folder"
            f"{folders_like(Path(place))}, the caches of the hub and of `datasets` do not hold it, "
            f"and {why}; check the name, or download it elsewhere and give texts.hub the folder"
        )


def _data_set_cached(name: str) -> bool:
    """Whether caches may hold a data set: `datasets` spells the second half of a name anew."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    config = sys.modules.get("datasets.config")  # importing it takes seconds
    default = os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME, "datasets")
    cache = Path(getattr(config, "HF_DATASETS_CACHE", default)).expanduser()
    owner, slash, _ = name.partition("/")
    made = any(cache.glob(f"{owner}___*")) if slash else any(cache.glob("*"))
    return made or Path(HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}").is_dir()


def folders_like(folder: Path) -> str:
    """Near misses of a folder that is not there, among those beside it."""
    if not folder.parent.is_dir():
        return ""
    beside = [str(other) for other in folder.parent.iterdir() if other.is_dir()]
    return near_misses(str(folder), beside)


def check_folder(folder: Path) -> None:
    """UserError for a folder of an adapter or of GGUF alone, and for one whose config.json cannot
    be a model's."""
    refuse_adapter(folder)
    _refuse_gguf(folder)
    path = folder / "config.json"
    if not path.exists():
        held = " ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{folder} is no model's folder: it holds no config.json, but {held}; give a folder "
            "as save_pretrained writes it"
        )
    _check_counts(mapping(path, "the model's configuration"), path)
    for name in _BESIDE:
        if os.path.lexists(folder / name):
            mapping(folder / name, "the file")
    for name in _WEIGHTS:
        if os.path.lexists(folder / name) and not is_file(folder / name):
            raise UserError(f"{folder / name} is no file; {COPY}")


def _refuse_gguf(folder: Path) -> None:
    found = sorted(file.name for file in folder.glob("*.gguf"))
    if found and not any(folder.glob("*.safetensors*")) and not any(folder.glob("*.bin*")):
        raise UserError(
            f"{folder} holds its weights as GGUF alone ({found[0]}), which is for inference; give "
            "the folder that it was made from, or write one: in Python, "
            f"AutoModelForCausalLM.from_pretrained({str(folder)!r}, gguf_file={found[0]!r})"
            ".save_pretrained(...) of transformers, and its tokenizer likewise"
        )


def refuse_adapter(folder: Path, effect: str = "") -> None:
    """UserError for a folder of an adapter alone; ``effect``: what else to say about merging it."""
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        settings = mapping(adapter, "the adapter's configuration")
        base = settings.get("base_model_name_or_path")
        raise UserError(
            f"{folder} holds an adapter of the model {str(base)!r}, not a model of its own; merge "
            "the two (PeftModel.from_pretrained(base, adapter).merge_and_unload(), then "
            f"save_pretrained, and the tokenizer beside it) and give that folder{effect}"
        )


def mapping(path: Path, what: str) -> dict[str, Any]:
    """The content of a JSON file that holds a mapping; UserError for another."""
    content = read_json(path, what, COPY)
    if not isinstance(content, dict):
        raise UserError(
            f"cannot read {what} {path}: expected a mapping, got {type(content).__name__}; {COPY}"
        )
    return content


def _check_counts(config: Any, path: Path, inside: str = "") -> None:
    items = config.items() if isinstance(config, dict) else enumerate(config)
    for key, value in items:
        name = f"{inside}{key}"
        if isinstance(value, int) and isinstance(key, str):
            most = min((n for keys, n in _COUNTED.items() if keys.search(key)), default=value)
            if value > most or (value < 1 and _POSITIVE.match(name)):
                expected = f"at most {most}, as in any model" if value > most else "1 or more"
                raise UserError(f"expected {expected}, for {name} in {path}, got {value}; {COPY}")
        if isinstance(value, dict | list):
            _check_counts(value, path, f"{name}.")


def setting_with(value: object, folder: Path) -> str | None:
    """Name in config.json of the first setting that is ``value``: ``rope_parameters.type``."""

    def search(settings: dict[str, Any]) -> str | None:
        for name, content in settings.items():
            if content == value:
                return name
            if isinstance(content, dict) and (inside := search(content)):
                return f"{name}.{inside}"
        return None

    path = folder / "config.json"
    return search(mapping(path, "the model's configuration")) if path.is_file() else None


_TOKENIZER = re.compile(
    r"(tokenizer|vocab|merges|spiece|tekken|sentencepiece).*|.*\.(model|tiktoken)"
)


def check_tokenizer_there(folder: Path) -> None:
    """UserError for a folder that holds no file of a tokenizer."""
    if not any(_TOKENIZER.fullmatch(file.name) for file in folder.iterdir()):
        raise UserError(
            f"{folder} holds no tokenizer; copy tokenizer.json and tokenizer_config.json there, of "
            "the model that it was made from"
        )
