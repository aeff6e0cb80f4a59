"""Of many architectures: a base is loaded, trained with a region frozen, exported and compared."""

import pytest
import torch
import transformers

from freezetrain import freeze
from freezetrain.analysis.verify import compare
from freezetrain.models import load_model, meta_model, stored_dtypes
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Region, decoder_blocks
from freezetrain.scoring import compute_scores
from freezetrain.training.export import export

ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "vocab_size": 400}

SIZES = {
    **ENDS, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip

GROUPED = {**SIZES, "num_key_value_heads": 1}

GEMMA = {**GROUPED, "head_dim": 8}

SEES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def wrapped() -> transformers.PretrainedConfig:
    return transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**GEMMA).to_dict(),
        vision_config=transformers.SiglipVisionConfig(**SEES).to_dict(),
        mm_tokens_per_image=4,
    )


def opt() -> transformers.PretrainedConfig:
    sizes = {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16}
    del sizes["intermediate_size"]
    return transformers.OPTConfig(**sizes)


DEFAULT = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "gpt2": lambda: transformers.GPT2Config(**ENDS, n_embd=16, n_layer=2, n_head=2, n_positions=64),
}

MORE = {
    "gemma3": lambda: transformers.Gemma3TextConfig(**GEMMA),
    "gemma3-wrapped": wrapped,
    "mpt": lambda: transformers.MptConfig(
        **ENDS, d_model=16, n_heads=2, n_layers=2, max_seq_len=64
    ),
    "bloom": lambda: transformers.BloomConfig(**ENDS, hidden_size=16, n_layer=2, n_head=2),
    "opt": opt,
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "rwkv": lambda: transformers.RwkvConfig(
        **ENDS, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16, context_length=64
    ),
    "mamba": lambda: transformers.MambaConfig(
        **ENDS, hidden_size=16, num_hidden_layers=2, state_size=4
    ),
    "phi": lambda: transformers.PhiConfig(**SIZES),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES),
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=2),
}  # fmt: skip

ARCHITECTURES = [
    *DEFAULT,
    *(pytest.param(name, marks=pytest.mark.exhaustive) for name in MORE),
]


def made(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config({**DEFAULT, **MORE}[name]()).eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_frozen_entries_of_an_export_are_the_bases(tmp_path, tokenizer, name):
    base, trained = tmp_path / "base", tmp_path / "trained"
    made(name).save_pretrained(base)
    model = load_model(ModelSource(str(base), dtype="stored"))
    region = Region.random(model, 0.1, seed=0)
    assert region.count

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    ids = torch.arange(3, 27).reshape(2, 12)
    with freeze(model.train(), optimizer, region):
        for _ in range(2):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    export(model, tokenizer, trained, dtype=stored_dtypes(ModelSource(str(base))))

    found = compare(base, trained, region)
    assert (found.checked, found.moved) == (region.count, 0)
    assert found.changed > 0.3 * found.trainable  # of one that sees, a part has no text
    again = load_model(ModelSource(str(trained), dtype="stored"))
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    assert {n for n, _ in decoder_blocks(meta_model(ModelSource(str(trained))))} == {
        n for n, _ in decoder_blocks(model)
    }
    scores = compute_scores(again, [ids], "taylor")  # no cache in its way
    assert all(score.isfinite().all() for score in scores.values())
