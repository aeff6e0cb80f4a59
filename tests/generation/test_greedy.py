"""Continuations against a plain loop over one prompt and one token at a time."""

import pytest
import torch
from plain_greedy import goes_on
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, RwkvConfig

from freezetrain.errors import CheckError, UserError
from freezetrain.generation import greedy
from freezetrain.generation.greedy import continuations, require_continuable

PROMPTS = ["All human", "人人", "All", "Todos los seres humanos", "Whereas", "No"]
SIZES = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 2}
KINDS = {
    "sliding": MistralConfig(
        **SIZES, num_attention_heads=2, num_key_value_heads=2, intermediate_size=24,
        sliding_window=4,
    ),
    "rwkv": RwkvConfig(**SIZES, attention_hidden_size=16),  # generates rightly without a cache
}  # fmt: skip


def loud(model):
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    return model.eval()


@pytest.fixture(scope="module")
def speaker(make_model):
    """A model that says an end of sequence after some prompts."""
    model = loud(make_model(1))
    with torch.no_grad():
        model.lm_head.weight[1] = model.lm_head.weight[300]
    return model


@pytest.mark.parametrize("kind", ["llama", *KINDS])
@pytest.mark.parametrize("batch", [1, 3])
def test_texts_are_those_of_a_plain_loop(kind, batch, speaker, tokenizer):
    torch.manual_seed(0)
    model = speaker if kind == "llama" else loud(AutoModelForCausalLM.from_config(KINDS[kind]))
    done = []
    said = continuations(model, tokenizer, PROMPTS, 12, batch=batch, during=done.append)
    assert said == [goes_on(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert len({*said}) > 3
    assert done[-1] == len(PROMPTS)
    assert continuations(model, tokenizer, PROMPTS, 12, cache=False) == said


def test_prompts_of_one_length_go_together(speaker, tokenizer, monkeypatch):
    rows = []
    generate = greedy.generate

    def noted(model, given, *more):
        rows.append(tuple(given.shape))
        return generate(model, given, *more)

    monkeypatch.setattr(greedy, "generate", noted)
    continuations(speaker, tokenizer, ["No", "Whereas", "No", "No"], 2, batch=2)
    lengths = [1 + len(tokenizer(text)["input_ids"]) for text in ("No", "Whereas")]
    assert rows == [(2, lengths[0]), (1, lengths[0]), (1, lengths[1])]


def test_a_text_ends_at_an_end_of_sequence(make_model, tokenizer):
    """Which is no part of it; what the model says next has no say."""
    model = make_model(1)
    ended = iter([40, 50, 1, 60, 70])

    def forward(input_ids, **_):
        logits = torch.zeros(*input_ids.shape, 400)
        logits[:, -1, next(ended)] = 1
        return type(model_output)(logits=logits)

    model_output = model(torch.tensor([[0]]))
    model.forward = forward
    said = continuations(model, tokenizer, ["All"], 5, cache=False)
    assert said == [tokenizer.decode([40, 50])]
    ended = iter([40, 50, 60])
    assert continuations(model, tokenizer, ["All"], 2, cache=False) == said


def test_settings_of_the_models_folder_have_no_say(speaker, tokenizer, monkeypatch):
    before = continuations(speaker, tokenizer, PROMPTS, 6)
    trap = GenerationConfig(repetition_penalty=9.0, suppress_tokens=[5], do_sample=True, max_time=0)
    monkeypatch.setattr(speaker, "generation_config", trap)
    assert continuations(speaker, tokenizer, PROMPTS, 6) == before
    assert speaker.generation_config is trap


def test_a_model_without_numbers_is_refused(make_model, tokenizer):
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CheckError, match="the model's logits are not finite"):
        continuations(model, tokenizer, ["All"], 3)


def test_a_prompt_that_does_not_fit_is_refused(model, tokenizer):
    require_continuable(model, tokenizer, ["All human beings"], 100)
    with pytest.raises(UserError, match=r"do not fit into the model's 128 tokens; shorten the"):
        require_continuable(model, tokenizer, ["All human beings"], 127)


def test_a_model_that_cannot_generate_is_refused_where_there_are_prompts(
    model, tokenizer, monkeypatch
):
    """As one of a user's own code that has no generate() of transformers."""
    monkeypatch.setattr(type(model), "can_generate", lambda *_: False)
    require_continuable(model, tokenizer, [], 100)
    with pytest.raises(UserError, match=r"no generate\(\) of transformers.*, or give no prompts$"):
        require_continuable(model, tokenizer, ["All"], 100)
