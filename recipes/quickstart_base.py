"""Prepare what a small multilingual base is pre-trained on: texts, tokenizer and configuration.

For the base that quickstart starts from, of 4 million weights:

    python recipes/quickstart_base.py HELP_FOLDER OUT
    freezetrain train recipes/quickstart_base.yaml --model.path OUT/config --texts.folder OUT/texts

For the base of docs/study.md, of 31 million, to which Turkish is nearly unknown as well:

    python recipes/quickstart_base.py HELP_FOLDER OUT --targets zh tr --hidden 512 --inner 1344 \\
        --layers 8 --heads 8
    freezetrain train recipes/study_base.yaml --model.path OUT/config --texts.folder OUT/texts

HELP_FOLDER holds <language>.jsonl.xz files of {"page": ..., "text": ...} made from the Debian
packages libreoffice-help-* 4:7.4.7 (MPL-2.0) in en es ru de fr ja ko it zh pt vi tr. Their text is
not shipped; the base that quickstart starts from is what this recipe made of it.
"""

import argparse
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from freezetrain.data.texts import read_languages
from freezetrain.recipe.sources import TextSource

TARGET_CHARACTERS = 60_000  # of a target language: nearly unseen, as Chinese is in LLaMA
VOCABULARY = 6144
CONTEXT = 512


def help_pages(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Language and training pages; pages whose CRC-32 is divisible by 16 stay unseen."""
    for path in sorted(folder.glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            pages = [json.loads(line) for line in lines]
        kept = [p["text"] for p in pages if zlib.crc32(p["page"].encode()) % 16]
        yield path.name.split(".")[0], kept


def shortened(texts: list[str], characters: int) -> list[str]:
    """The first texts that hold about so many characters together."""
    kept, total = [], 0
    for text in texts:
        if total >= characters:
            break
        kept.append(text)
        total += len(text)
    return kept


def write(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        model_max_length=CONTEXT,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("help_folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--targets", nargs="+", default=["zh"], help="languages nearly unseen")
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--inner", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    told = parser.parse_args()
    texts = told.out / "texts"
    texts.mkdir(parents=True)
    for_tokenizer: list[str] = []
    for language, pages in help_pages(told.help_folder):
        for_tokenizer += shortened(pages, 150_000)
        if language in told.targets:
            pages = shortened(pages, TARGET_CHARACTERS)
        write(texts / f"help-{language}.jsonl", pages)
    for name, language in read_languages(TextSource()).items():
        articles = list(language.train)
        for_tokenizer += articles * 3
        if name not in told.targets:
            write(texts / f"udhr-{name}.jsonl", articles)
    train_tokenizer(for_tokenizer).save_pretrained(told.out / "config")
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=told.hidden,
        intermediate_size=told.inner,
        num_hidden_layers=told.layers,
        num_attention_heads=told.heads,
        num_key_value_heads=told.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    ).save_pretrained(told.out / "config")


if __name__ == "__main__":
    main()
