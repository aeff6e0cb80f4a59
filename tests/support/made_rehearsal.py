"""A folder of rehearsal, drawn by a tiny model token by token, without the verb."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from freezetrain.data.tokens import tokenizer_digest
from freezetrain.regions.base import base_of
from freezetrain.rehearsal import top_targets
from freezetrain.rehearsal.pieces import Made, Piece, write_piece


@torch.no_grad()
def rehearse(folder, model_folder, lengths, k=8, pieces=2, seed=0, model=None) -> Path:
    """``lengths`` of the sequences of each of ``pieces`` pieces; ``model`` draws instead."""
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    drawing = model or base
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    vocabulary = base.config.vocab_size
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
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
        rows = torch.full((len(lengths), 1), first)
        while rows.shape[1] < max(lengths):
            likely = drawing(rows).logits[:, -1].softmax(1)
            rows = torch.cat([rows, torch.multinomial(likely, 1, generator=generator)], 1)
        logits = drawing(rows).logits
        tokens, said = (
            [of[n, :length] for n, length in enumerate(lengths)] for of in (rows, logits)
        )
        starts = torch.tensor([0, *lengths]).cumsum(0)
        none = torch.zeros(len(lengths), dtype=torch.int64)
        piece = Piece(torch.cat(tokens), starts, none, none + 1, top_targets(torch.cat(said), k))
        write_piece(folder, number, piece, made)
    return folder
