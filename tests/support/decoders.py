"""Tiny models whose weights are stored in other ways than Llama's."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)


def tiny_gpt2(seed: int = 0) -> GPT2LMHeadModel:
    """Conv1D matrices, stored [in, out]; norms and matrices with biases."""
    torch.manual_seed(seed)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 64}
    ends = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(**sizes, **ends)).eval()


def tiny_mixtral(seed: int = 0) -> MixtralForCausalLM:
    """Fused experts [E, out, in]."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    return MixtralForCausalLM(MixtralConfig(vocab_size=40, **sizes, **heads)).eval()


def tiny_gpt_oss(seed: int = 0) -> GptOssForCausalLM:
    """Fused experts [E, in, out], of as many inner features as the stream has, with biases."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 3}
    ends = {"vocab_size": 40, "pad_token_id": 0, "num_experts_per_tok": 2}
    model = GptOssForCausalLM(GptOssConfig(**sizes, **heads, **ends)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.02)
    return model
