"""What ranks need and what takes seconds to import: the server that forks them loads it once."""
# ruff: noqa: F401

import gc
import os

os.environ["DS_ACCELERATOR"] = "cpu"

import accelerate
import lightning
import torch
import torch._dynamo  # each optimizer would import it, in every rank
import transformers
import transformers.trainer

try:
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer  # by deepspeed.initialize
except ImportError:  # it exists on Linux only
    pass

torch.set_num_threads(1)
gc.freeze()  # DeepSpeed collects garbage often: what was imported needs no look
