"""A language model of which it is known where two of its languages live.

The residual stream, the heads and the inner features of the MLPs are split in halves. Every matrix
is zero between the halves, and the words of the old languages, ``a1`` and ``a2``, embed in the
first half alone: on their texts the second half is exactly zero everywhere. So whatever is not in
:func:`known_region` multiplies zeros there, and may change without changing a bit of what the model
says of these texts. Words of the target language, ``new``, embed in both halves, so that training
on it changes the first half as well.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from freezetrain.nll import token_nll
from freezetrain.regions import Entries, Region
from freezetrain.regions.base import base_of

OLD, NEW = ("a1", "a2"), "new"
WORDS = {language: [f"{language}-{n}" for n in range(12)] for language in (*OLD, NEW)}
SPECIAL = ["<unk>", "</s>"]
VOCABULARY = [*SPECIAL, *(word for words in WORDS.values() for word in words)]
HIDDEN, INNER, LENGTH = 32, 48, 24


def sentences(language: str, count: int, seed: int) -> list[str]:
    """Walks over the words of a language: two words follow each, one of them more often."""
    words = WORDS[language]
    grammar = torch.Generator().manual_seed(sum(map(ord, language)))
    follows = torch.stack([torch.randperm(len(words), generator=grammar)[:2] for _ in words])
    draw = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(count):
        at = int(torch.randint(len(words), (), generator=draw))
        walk = [words[at]]
        for often in (torch.rand(LENGTH - 2, generator=draw) < 0.8).tolist():
            at = int(follows[at, 0 if often else 1])
            walk.append(words[at])
        texts.append(" ".join(walk))
    return texts


def write_texts(folder: Path, documents: int) -> Path:
    folder.mkdir()
    for number, language in enumerate(WORDS):
        rows = [json.dumps({"text": text}) for text in sentences(language, documents, number)]
        (folder / f"{language}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def planted_tokenizer() -> PreTrainedTokenizerFast:
    """A token a word."""
    ids = {word: number for number, word in enumerate(VOCABULARY)}
    words = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")


def token_ids(texts: list[str]) -> Tensor:
    """[texts, L], each between two ends, as texts are read in evaluation."""
    whole = [f"</s> {text} </s>" for text in texts]
    return torch.tensor(planted_tokenizer()(whole)["input_ids"])


def halves(size: int) -> Tensor:
    """Which of ``size`` features are in the first half, bool."""
    return torch.arange(size) < size // 2


def of_old(size: int) -> Tensor:
    """Which of ``size`` tokens old texts hold: their words and the end of a text, bool."""
    return torch.tensor([word.split("-")[0] in (*OLD, "</s>") for word in VOCABULARY[:size]])


def known_region(model: nn.Module) -> Region:
    """All that is multiplied with something else than zero on texts of the old languages."""
    entries = {}
    for name, parameter in model.named_parameters():
        mask = torch.zeros(parameter.shape, dtype=torch.bool)
        if name.endswith("embed_tokens.weight"):
            mask[of_old(len(mask))] = True
        else:  # of a norm's vector, or the columns of a matrix
            mask[..., halves(mask.shape[-1])] = True
        entries[name] = Entries.from_mask(mask)
    return Region(entries, base_of(model))


@torch.no_grad()
def split_in_halves(model: LlamaForCausalLM) -> None:
    """Zero between the halves, and in the second of the old languages' words."""
    for parameter in model.parameters():
        if parameter.ndim < 2:
            continue
        rows, columns = parameter.shape
        if rows == len(VOCABULARY):  # embedding and head
            parameter[of_old(rows)] *= halves(columns)
        else:
            parameter *= halves(rows)[:, None] == halves(columns)


def planted_model(steps: int = 120) -> LlamaForCausalLM:
    """Trained on the old languages and on words of the new one in no order, by a plain loop."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY), hidden_size=HIDDEN, intermediate_size=INNER,
            num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None,
            eos_token_id=1, initializer_range=0.2,
        )
    )  # fmt: skip
    split_in_halves(model)
    texts = [text for language in OLD for text in sentences(language, 400, 100)]
    for draws in torch.randint(len(WORDS[NEW]), (200, LENGTH - 1)).tolist():
        texts.append(" ".join(WORDS[NEW][n] for n in draws))
    rows = token_ids(texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (32,))]
        loss = token_nll(model(input_ids=batch).logits, batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        split_in_halves(model)
    return model.eval()
