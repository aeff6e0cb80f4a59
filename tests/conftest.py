"""Small things that many tests need: texts of three languages, a tokenizer, a tiny Llama."""

import gc
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Two processes run tests: with several threads each they wait for one another most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tables are as wide as it says; tests expect those of a log.
os.environ.pop("COLUMNS", None)

# Libraries are imported where they are used: the process that hands out tests needs none of them.

LANGUAGES = ("en", "es", "zh")


def pytest_addoption(parser):
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="run the tests marked exhaustive, and no others",
    )


def pytest_sessionstart():
    """Until all test files are imported there is no garbage to look for."""
    gc.disable()


def pytest_collection_finish():
    """A search for garbage leaves out what was imported: half a second, and trainers ask for it."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(config, items):
    """The default run leaves out what is marked exhaustive; ``--exhaustive`` runs just that."""
    exhaustive = config.getoption("--exhaustive")
    chosen = [item for item in items if bool(item.get_closest_marker("exhaustive")) == exhaustive]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
    items[:] = chosen


@pytest.fixture(scope="session", autouse=True)
def datasets_cache(tmp_path_factory):
    """Keep what `datasets` and freezetrain cache out of the user's home."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["FREEZETRAIN_CACHE"] = str(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """What a test leaves in the folder that it runs in belongs to that test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def udhr():
    """The built-in texts of three languages."""
    from freezetrain.data.texts import read_languages
    from freezetrain.recipe.sources import TextSource

    return read_languages(TextSource(), LANGUAGES)


@pytest.fixture(scope="session")
def tokenizer(udhr):
    """Byte-level BPE of 400 tokens with BOS and EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([t for language in udhr.values() for t in language.train], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")


def tiny_llama(seed: int = 0, **changes) -> "LlamaForCausalLM":
    """Two layers of width 16 over 400 tokens: 17 thousand weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {
        "vocab_size": 400,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).eval()


@pytest.fixture(scope="session")
def make_model():
    return tiny_llama


@pytest.fixture
def model():
    return tiny_llama()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer) -> Path:
    """A tiny model with its tokenizer, saved as Hugging Face does."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    tiny_llama().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def text_folder(tmp_path, udhr) -> Path:
    """JSONL files of three languages, parallel by the field `section`."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, language in udhr.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number, text in enumerate([*language.train, *language.test]):
                file.write(json.dumps({"section": number, "text": text}) + "\n")
    return folder


@pytest.fixture
def make_store(tmp_path_factory):
    """Token stores of given documents, in the layout that `tokenize` writes."""
    import numpy as np

    from freezetrain.data.tokens import TokenStore

    def make(documents, pieces=1):
        folder = tmp_path_factory.mktemp("store")
        parts = np.array_split(np.arange(len(documents)), pieces)
        for number, part in enumerate(parts):
            (folder / f"{number:05d}").mkdir()
            tokens = [token for document in part for token in documents[document]]
            np.save(folder / f"{number:05d}" / "tokens.npy", np.array(tokens, dtype=np.uint16))
        starts = np.cumsum([0, *map(len, documents)])
        np.save(folder / "starts.npy", starts[:-1].astype(np.int64))
        facts = {"documents": len(documents), "tokens": int(starts[-1]), "bytes": 10, "words": 2}
        facts |= {"held_out": 1, "skipped": 0}
        kept = {"digest": repr(documents), "pieces": pieces, "facts": facts}
        (folder / "facts.json").write_text(json.dumps(kept))
        return TokenStore(folder, "xx")

    return make
