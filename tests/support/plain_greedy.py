"""A text that goes on after a prompt: a plain loop, of the whole text so far at each token."""

import torch


@torch.no_grad()
def goes_on(model, tokenizer, prompt, new_tokens):
    """The likeliest token each time, after BOS and the prompt, up to an end of sequence."""
    ids = [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    new = []
    while len(new) < new_tokens:
        token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        new.append(token)
    return tokenizer.decode(new, skip_special_tokens=True)
