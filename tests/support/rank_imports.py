"""What ranks need and what takes seconds to import: the server that forks them loads it once."""
# ruff: noqa: F401

import gc
import os

os.environ["DS_ACCELERATOR"] = "cpu"

import accelerate
import lightning
import pytest
import safetensors.torch
import torch
import torch._dynamo  # each optimizer would import it, in every rank
import torch.distributed.checkpoint.format_utils
import torch.distributed.fsdp
import torch.distributed.optim
import torch.utils.cpp_extension
import transformers
import transformers.trainer

import freezetrain.evaluation.watch
import freezetrain.freezing.handle

try:
    import deepspeed
    import deepspeed.runtime.zero.muon.muon_optimizer  # by deepspeed.initialize

    deepspeed.ops.__compatible_ops__  # noqa: B018 - looked for by a compiler, in every rank
except ImportError:  # it exists on Linux only
    pass

torch.set_num_threads(1)
gc.freeze()  # DeepSpeed collects garbage often: what was imported needs no look
