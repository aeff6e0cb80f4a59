"""From logits to what is summed: NLL, number and hits of the labels in each row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from freezetrain.nll import NO_LABEL

# Turned into fp32 at once: those of a whole batch may be larger than the model. For each larger
# piece of memory a CPU asks the system anew, which takes longer than what is computed in it.
_LOGITS, _LOGITS_ON_GPU = 2**22, 2**24


def label_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the labels of each row: (NLL in nats [B] fp64, labels [B], labels ranked first [B]).

    ``logits`` is [B, L, V] of any float dtype; ``labels`` [B, L] stand at the places that predict
    them, NO_LABEL (-100) where nothing counts, whatever the logits there. The loss is taken in
    fp32. A label is ranked first if it is the argmax, as lm-evaluation-harness has it. All three
    are on the device of ``logits`` (MPS has no fp64: on the CPU), the last two int64.
    """
    labels = labels.to(logits.device)
    counts = labels != NO_LABEL
    at_once = max(1, (_LOGITS_ON_GPU if logits.is_cuda else _LOGITS) // logits.shape[-1])
    losses, hits = [], []
    for some, label in zip(
        logits.flatten(0, 1).split(at_once), labels.flatten().split(at_once), strict=True
    ):
        some = some.float()
        losses.append(F.cross_entropy(some, label, reduction="none", ignore_index=NO_LABEL))
        hits.append(some.max(-1).indices == label)  # the first of equals, as argmax, and faster
    device = torch.device("cpu") if logits.device.type == "mps" else logits.device
    nll = torch.cat(losses).view(labels.shape).to(device).double().sum(1)
    return nll, counts.sum(1).to(device), torch.cat(hits).view(labels.shape).sum(1).to(device)
