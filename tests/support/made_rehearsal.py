"""A folder of rehearsal, drawn by a tiny model token by token, without the verb."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from freezetrain.data.tokens import tokenizer_digest
from freezetrain.regions.base import base_of
from freezetrain.rehearsal import top_targets
from freezetrain.rehearsal.dataset import Made, Piece, write_piece


@torch.no_grad()
def rehearse(folder, model_folder, lengths, k=8, pieces=2, seed=0, model=None) -> Path:
    """``lengths`` of the sequences of each of ``pieces`` pieces; ``model`` draws instead."""
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    drawing = model or base
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    vocabulary = base.config.vocab_size
    generator = torch.Generator().manual_seed(seed)
    made = Made(
        base_of(base),
        tokenizer_digest(tokenizer),
        vocabulary,
        k,
        max(lengths),
        (None,),
        pieces,
        {"seed": seed},
    )
    for number in range(pieces):
        tokens, targets = [], []
        for length in lengths:
            row = torch.tensor([[tokenizer.bos_token_id or 0]])
            while row.shape[1] < length:
                logits = drawing(row).logits[0, -1]
                drawn = torch.multinomial(logits.softmax(0), 1, generator=generator)
                row = torch.cat([row, drawn[None]], 1)
            tokens.append(row[0])
            targets.append(drawing(row).logits[0])
        starts = torch.tensor([0, *lengths]).cumsum(0)
        none = torch.zeros(len(lengths), dtype=torch.int64)
        piece = Piece(torch.cat(tokens), starts, none, none + 1, top_targets(torch.cat(targets), k))
        write_piece(folder, number, piece, made)
    return folder
