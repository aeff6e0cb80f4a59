"""What ranks need and what takes seconds to import: the server that forks them loads it once."""
# ruff: noqa: E402, F401

import gc
import os

os.environ["DS_ACCELERATOR"] = "cpu"
gc.disable()  # imports leave no garbage, and looking for it takes two seconds

import accelerate
import datasets.io.generator
import lightning
import pytest
import safetensors.torch
import torch
import torch._dynamo  # each optimizer would import it, in every rank
import torch.distributed.algorithms.ddp_comm_hooks.default_hooks
import torch.distributed.checkpoint.format_utils
import torch.distributed.checkpoint.state_dict
import torch.distributed.fsdp
import torch.distributed.optim
import torch.utils.cpp_extension
import torch.utils.serialization.config
import torch.utils.tensorboard
import transformers
import transformers.models.llama.modeling_llama
import transformers.trainer
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import freezetrain.analysis.score
import freezetrain.cli.command_line
import freezetrain.evaluation.watch
import freezetrain.freezing.handle
import freezetrain.training.train

try:
    import deepspeed
    import deepspeed.module_inject.auto_ep_layer  # this and the next two by deepspeed.initialize
    import deepspeed.runtime.superoffload.superoffload_stage3
    import deepspeed.runtime.zero.muon.muon_optimizer

    import freezetrain.freezing.zero

    # Looked for by a compiler, in every rank. What is said not to be there is for inference, and
    # would be built first: a minute of two processors.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
except ImportError:  # it exists on Linux only
    pass

get_checkpoint_conversion_mapping("llama")  # compiles a thousand patterns when first asked
torch.set_num_threads(1)
gc.enable()
gc.freeze()  # DeepSpeed collects garbage often: what was imported needs no look
