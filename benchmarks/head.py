"""The loss of a head of 262,144 tokens (hidden size 640, as Gemma 3's 270M has), forward and
backward, in chunks of places as freezetrain computes it, beside whole logits and torch's
cross-entropy: seconds as a ratio, and the most that the process holds beyond what it held before
and the gradients of weights and hidden states, which both leave.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Options, Results, Row, alternate, ratios, shown, spread
from freezetrain.head.chunks import places_at_once
from freezetrain.head.find import Head
from freezetrain.head.loss import label_loss

TITLE = "The head's loss: time and memory"
VOCABULARY, HIDDEN = 262_144, 640
TIMED = {"cpu": 512, "cuda": 4096}
"""Places of which the time is taken; memory always of 4,096."""
PLACES = 4096
OURS, WHOLE = "in chunks", "whole logits"
TIME_GOAL, MEMORY_GOAL = 1.05, 0.6e9


def measure(options: Options) -> Results:
    device = options.device
    head, hidden, labels = _given(device, TIMED[device])
    ways = {name: partial(way, head, hidden, labels) for name, way in _WAYS.items()}
    seconds = alternate(ways, options.rounds, device=device, before=partial(_forget, head, hidden))
    return {
        "places": TIMED[device],
        "at_once": places_at_once(VOCABULARY, torch.device(device)),
        "seconds": seconds,
        "ratios": ratios(seconds, WHOLE),
        "bytes": {name: _alone(name, device) for name in _WAYS},
    }


def _given(device: str, places: int) -> tuple[Head, Tensor, Tensor]:
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    layer = nn.Linear(HIDDEN, VOCABULARY, bias=False, device=device, dtype=dtype)
    hidden = torch.randn(1, places, HIDDEN, device=device, dtype=dtype, requires_grad=True)
    return Head(layer), hidden, torch.randint(VOCABULARY, (1, places), device=device)


def _forget(head: Head, hidden: Tensor) -> None:
    head.module.weight.grad = hidden.grad = None


def _in_chunks(head: Head, hidden: Tensor, labels: Tensor) -> None:
    label_loss(hidden, head, labels).backward()  # type: ignore[no-untyped-call]


def _whole(head: Head, hidden: Tensor, labels: Tensor) -> None:
    logits = head.module(hidden).float()
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    del logits
    loss.backward()  # type: ignore[no-untyped-call]


_WAYS: dict[str, Callable[[Head, Tensor, Tensor], None]] = {OURS: _in_chunks, WHOLE: _whole}


def _alone(name: str, device: str) -> int:
    """Bytes that ``name`` takes beside the gradients it leaves, in a process of its own."""
    worker = "import sys; from benchmarks.head import child; child(*sys.argv[1:])"
    words = [sys.executable, "-c", worker, name, device]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout))


def child(name: str, device: str) -> None:
    """Print what :func:`_alone` gives."""
    head, hidden, labels = _given(device, PLACES)
    left = head.module.weight.nbytes + hidden.nbytes
    if device == "cuda":
        held = torch.cuda.memory_allocated()
        _WAYS[name](head, hidden, labels)
        print(torch.cuda.max_memory_allocated() - held - left)
        return
    small = Head(nn.Linear(8, 64)), torch.randn(1, 4, 8, requires_grad=True)
    _WAYS[name](*small, torch.zeros(1, 4, dtype=torch.int64))  # code is loaded
    held = _held("VmRSS")
    _WAYS[name](head, hidden, labels)
    print(_held("VmHWM") - held - left)


def _held(what: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(what))


def rows(figures: Results) -> list[Row]:
    ratio, plain = figures["ratios"][OURS], spread(figures["seconds"][WHOLE])
    ours, whole = (figures["bytes"][name] for name in (OURS, WHOLE))
    return [
        Row(
            f"time of {figures['places']:,} places, {figures['at_once']} at once",
            f"{shown(ratio)} of whole logits, {shown(plain)} s",
            f"at most {TIME_GOAL}",
            ratio["median"] <= TIME_GOAL,
            "each chunk goes through the gradient of the weights once",
        ),
        Row(
            f"memory of {PLACES:,} places",
            f"{ours / 1e9:.2f} GB; whole logits {whole / 1e9:.2f} GB",
            f"at most {MEMORY_GOAL / 1e9} GB",
            ours <= MEMORY_GOAL,
        ),
    ]
