"""Model folders that are not what they seem, given to each verb: refused in one sentence."""

import pytest
from bad_input import cases, in_file

MODELS = in_file(
    {
        "quickstart": "--model @here/model",
        "paper": "--model @here/model",
        "score": "--model @here/model",
        "magnitude": "[select] --kind magnitude --model @here/model",
        "vocabulary": "[select] --kind vocabulary --language zh --texts @texts --model @here/model",
        "ablate": "--model @here/model",
        "perturb": "--model @here/model",
        "extend": "--model @here/model",
        "rehearse": "--model @here/model",
        "train": "--model @here/model",
        "dry run": "[train] --dry_run --model @here/model",
        "compare": "--train.model.path @here/model",
        "base": "[forgetting] --base.path @here/model",
        "models": "[forgetting] --models '[{path: @here/model}]'",
        "verify": "--base @here/model",
        "verified": "[verify] --adapted @here/model",
        "info": "--path @here/model",
    }
)

PLACES = """
quickstart | elsewhere/x | words | @here/model
paper | elsewhere/x | words | @here/model
score | elsewhere/x | words | @here/model
extend | elsewhere/x | words | @here/model
rehearse | elsewhere/x | words | @here/model
base | elsewhere/x | words | @here/model
models | elsewhere/x | words | @here/model
verify | elsewhere/x | words | @here/model
verified | elsewhere/x | words | @here/model
info | elsewhere/x | words | @here/model
train | model | words | @here/model
verify | model | words | @here/model
info | model | words | @here/model
score | model | a pipe | @here/model
info | model | a device | @here/model
train | model | a link to itself | @here/model
score | model/config.json | - | config.json
info | model/config.json | - | @here/model
verify | model/model.safetensors | - | @here/model
train | model/tokenizer.json | - | tokenizer
info | model/config.json | a folder | @here/model
score | model/model.safetensors | a pipe | model
verify | model/model.safetensors | a pipe | model
train | model/model.safetensors | a dangling link | model
models | model/model.safetensors | a folder | model
train | model/tokenizer.json | a pipe | tokenizer
"""

CONFIGURATIONS = """
score | model/config.json | a list
info | model/config.json | a number
train | model/config.json | null
perturb | model/config.json | nothing
rehearse | model/config.json | nothing
rehearse | model/generation_config.json | a list
verify | model/config.json | nothing
extend | model/config.json | half a mapping
quickstart | model/config.json | no text
paper | model/config.json | HTML
ablate | model/config.json | a pointer of LFS
train | model/config.json | an empty mapping | config.json
models | model/config.json | a deep list
verify | model/config.json | deep
train | model/generation_config.json | a list
ablate | model/generation_config.json | half a mapping
score | model/config.json | +hidden_size = "abc" | hidden_size
magnitude | model/config.json | +hidden_size = -16 | hidden_size
info | model/config.json | +hidden_size = 0 | hidden_size
score | model/config.json | +hidden_size = 1000000000000000000000000000000 | @here/model
train | model/config.json | +num_hidden_layers = "2" | num_hidden_layers
train | model/config.json | +num_hidden_layers = -1 | num_hidden_layers
info | model/config.json | +num_hidden_layers = 0 | num_hidden_layers
perturb | model/config.json | +num_hidden_layers = 1000000000 | num_hidden_layers
score | model/config.json | +num_attention_heads = 0 | @here/model
score | model/config.json | +hidden_act = "boom" | boom
train | model/config.json | +hidden_act = 5 | hidden_act
train | model/config.json | +dtype = "float99" | float99
train | model/config.json | +model_type = "nothing" | nothing
info | model/config.json | +model_type = 5 | `5`
base | model/config.json | +model_type = ["llama"] | @here/model
score | model/config.json | +rms_norm_eps = 1e999 | config.json
score | model/config.json | +rms_norm_eps = NaN | config.json
verify | model/config.json | +rms_norm_eps = NaN | config.json
"""

WEIGHTS = """
score | model/model.safetensors | nothing
verify | model/model.safetensors | nothing
verified | model/model.safetensors | a header of 2^63
ablate | model/model.safetensors | a header of words
quickstart | model/model.safetensors | a header of a list
info | model/model.safetensors | a negative shape
magnitude | model/model.safetensors | a huge shape
"""

INDEXES = """
score | model/model.safetensors.index.json | a list
verify | model/model.safetensors.index.json | a list
verified | model/model.safetensors.index.json | half a mapping
info | model/model.safetensors.index.json | an empty mapping
verify | model/model.safetensors.index.json | deep
extend | model/model.safetensors.index.json | ={"weight_map": [1]}
verify | model/model.safetensors.index.json | ={"weight_map": {"a": 5}}
score | model/model.safetensors.index.json | ={"weight_map": {"a": "x.safetensors"}} | x.safetensors
verify | model/model.safetensors.index.json | ={"weight_map": {"a": "/etc/passwd"}} | /etc/passwd
verified | model/model.safetensors.index.json | ={"weight_map": {"a": "@long"}} | nnnnnnnnnn
verify | model/model.safetensors.index.json | ={"weight_map": {"a": "a\\u0000b"}} | a\\x00b
"""

TOKENIZERS = """
train | model/tokenizer.json | a list | tokenizer
extend | model/tokenizer.json | nothing | tokenizer
quickstart | model/tokenizer.json | no text | tokenizer
compare | model/tokenizer.json | an empty mapping | tokenizer
score | model/tokenizer_config.json | a list
train | model/tokenizer_config.json | null
perturb | model/tokenizer_config.json | nothing
quickstart | model/tokenizer_config.json | deep
score | model/special_tokens_map.json | a list
train | model/added_tokens.json | half a mapping
extend | model/tokenizer_config.json | +added_tokens_decoder = [1] | tokenizer
"""

MORE = """
score | model/model.safetensors | - | @here/model
train | model/model.safetensors.index.json | ={"weight_map": {}} | @here/model
score | model/model.safetensors | no tensors | @here/model
models | model/model.safetensors | HTML
train | model/config.json | +num_hidden_layers = 1 | layers
compare | model/model.safetensors | a tensor beyond the end
train | elsewhere/x | words | @here/model
train | model/model.safetensors.index.json | ={"weight_map": {"a": "../../x"}} | ../../x
train | model/model.safetensors | a pointer of LFS
train | model/model.safetensors | a deep header
compare | elsewhere/x | words | @here/model
train | model/model.safetensors.index.json | nothing
perturb | model/model.safetensors | a huge header
train | model/config.json | a pipe | config.json
magnitude | elsewhere/x | words | @here/model
ablate | elsewhere/x | words | @here/model
perturb | elsewhere/x | words | @here/model
dry run | elsewhere/x | words | @here/model
extend | model/model.safetensors | - | @here/model
models | model/tokenizer.json | - | tokenizer
extend | model/tokenizer.json | a dangling link | tokenizer
compare | model/config.json | deep
score | model/generation_config.json | deep
extend | model/config.json | +hidden_size = null | hidden_size
ablate | model/config.json | +hidden_size = 17 | hidden size
models | model/config.json | +num_hidden_layers = {} | num_hidden_layers
compare | model/config.json | +num_attention_heads = "x" | num_attention_heads
train | model/config.json | +num_key_value_heads = 0 | @here/model
train | model/config.json | +head_dim = "x" | head_dim
vocabulary | model/config.json | +intermediate_size = 25 | @here/model
score | model/config.json | +vocab_size = 5000 | @here/model
train | model/config.json | +vocab_size = 1000000000000 | config.json
base | model/config.json | +vocab_size = -1 | vocab_size
score | model/config.json | +dtype = "nn" | @here/model
train | model/config.json | +model_type = "t5" | @here/model
score | model/config.json | +rope_parameters = "x" | rope_parameters
train | model/config.json | +rope_parameters = {"rope_type": "bogus"} | bogus
train | model/config.json | +max_position_embeddings = "128" | max_position_embeddings
score | model/config.json | +max_position_embeddings = -5 | max_position_embeddings
train | model/config.json | +rms_norm_eps = [1] | rms_norm_eps
train | model/config.json | +quantization_config = {"quant_method": "boom"} | quant
extend | model/config.json | +quantization_config = "x" | @here/model
score | model/config.json | +layer_types = ["boom", "boom"] | layer_types
train | model/config.json | +auto_map = 5 | @here/model
score | model/config.json | +id2label = 7 | @here/model
verify | model/model.safetensors | no tensors | @here/model
paper | model/model.safetensors | an unknown type
base | model/model.safetensors | tensors over one another
extend | model/model.safetensors | another tensor | @here/model
verify | model/model.safetensors | another tensor | @here/model
vocabulary | model/model.safetensors | metadata of a number
models | model/tokenizer.json | a pointer of LFS | tokenizer
base | model/tokenizer.json | HTML | tokenizer
score | model/tokenizer.json | deep | tokenizer
paper | model/tokenizer.json | null | tokenizer
ablate | model/tokenizer.json | ={"version": "1.0", "model": {"type": "Boom"}} | tokenizer
vocabulary | model/tokenizer_config.json | half a mapping
models | model/tokenizer_config.json | no text
score | model/tokenizer_config.json | +tokenizer_class = 5 | tokenizer
base | model/tokenizer_config.json | +added_tokens_decoder = {"x": 5} | tokenizer
train | model/tokenizer_config.json | +model_max_length = "abc" | tokenizer
score | model/tokenizer_config.json | +bos_token = 5 | tokenizer
"""


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "case",
    cases(
        (PLACES, MODELS),
        (CONFIGURATIONS, MODELS),
        (WEIGHTS, MODELS),
        (INDEXES, MODELS),
        (TOKENIZERS, MODELS),
    )
    + cases((MORE, MODELS), exhaustive=True),
)
def test_a_model_that_is_none_is_refused(refuse, case):
    refuse(case)
