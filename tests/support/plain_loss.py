"""The NLL of documents by a plain loop in fp64, apart from the evaluation that it checks."""

import copy

import torch
import torch.nn.functional as F

from freezetrain.evaluation import Document


def plain_figures(model, documents, max_length):
    """Language -> (nats over its tokens, tokens, bytes): one window of one document at a time."""
    model = copy.deepcopy(model).double()
    found = {}
    for language, texts in documents.items():
        nll, tokens = 0.0, 0
        for text in texts:
            done = 0
            while done < len(text.ids) - 1:  # the last window reaches back for its context
                last = min(done + max_length, len(text.ids) - 1)
                first = max(0, last - max_length)
                with torch.no_grad():
                    logits = model(torch.tensor([text.ids[first:last]])).logits[0]
                labels = torch.tensor(text.ids[done + 1 : last + 1])
                nll += F.cross_entropy(logits[done - first :], labels, reduction="sum").item()
                tokens += len(labels)
                done = last
        found[language] = nll, tokens, sum(text.bytes for text in texts)
    return found


def plain_documents(texts, tokenizer):
    """Documents of ``texts``, each after the token 0, which tiny tokenizers begin a text with."""
    return [
        Document(
            [0, *tokenizer(text, add_special_tokens=False)["input_ids"]], bytes=len(text.encode())
        )
        for text in texts
    ]


def edited(model, edit):
    """A copy whose state dict ``edit(name, tensor)`` has changed."""
    copied = copy.deepcopy(model)
    state = {name: edit(name, value.clone()) for name, value in copied.state_dict().items()}
    copied.load_state_dict(state)
    return copied
