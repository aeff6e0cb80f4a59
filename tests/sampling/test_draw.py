"""What is drawn follows the model's own probabilities, whatever its folder says."""

import math
from math import nan

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    MambaConfig,
    MistralConfig,
    RwkvConfig,
    XLNetConfig,
    XLNetLMHeadModel,
)

from freezetrain.errors import CheckError
from freezetrain.generation import generate
from freezetrain.generation.generate import cache_works
from freezetrain.rehearsal.pieces import Piece
from freezetrain.sampling import draw
from freezetrain.sampling.draw import (
    check_drawn,
    draw_sequences,
    drawn_places,
    targets_of,
)

TOKENS = 7  # of a tiny vocabulary
BOS = 0
OTHERWISE = "draw not"


@pytest.fixture(scope="module")
def speaker(make_model):
    """A model of 7 tokens that has much to choose from, and its own mind about it."""
    model = make_model(3, vocab_size=TOKENS, bos_token_id=BOS, eos_token_id=None)
    with torch.no_grad():
        model.lm_head.weight.mul_(25)
    return model


def drawn(model, given, ends=(), length=4, temperature=1.0, seed=0):
    return draw_sequences(
        model, given, length=length, temperature=temperature, ends=list(ends), seed=seed
    )


def counts_and_probabilities(model, temperature=1.0, seed=0, rows=4000):
    """How often each of 49 pairs of tokens follows BOS, and how often the model's softmax says."""
    rows_drawn = drawn(
        model, torch.full((rows, 1), BOS), length=3, temperature=temperature, seed=seed
    )
    pairs = torch.stack(rows_drawn)[:, 1:]
    counts = torch.bincount(pairs[:, 0] * TOKENS + pairs[:, 1], minlength=TOKENS**2)
    with torch.no_grad():
        first = model(torch.tensor([[BOS]])).logits[0, -1].double().softmax(0)
        both = torch.tensor([[BOS, token] for token in range(TOKENS)])
        second = model(both).logits[:, -1].double().softmax(1)
    return counts.double(), (first[:, None] * second).flatten()


def standardized_chi_square(counts, probabilities) -> float:
    """Pearson's statistic, over pairs that are expected 5 times or more, in standard deviations."""
    expected = probabilities * counts.sum()
    kept = expected >= 5
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = int(kept.sum())
    assert degrees > 15
    return float((statistic - degrees) / math.sqrt(2 * degrees))


def test_tokens_are_drawn_with_the_models_probabilities(speaker):
    assert abs(standardized_chi_square(*counts_and_probabilities(speaker))) < 3
    assert standardized_chi_square(*counts_and_probabilities(speaker, temperature=1.3)) > 10


def test_temperature_divides_the_logits(speaker):
    counts, _ = counts_and_probabilities(speaker, temperature=1.3)
    speaker.lm_head.weight.data.div_(1.3)
    try:
        _, probabilities = counts_and_probabilities(speaker, rows=1)
    finally:
        speaker.lm_head.weight.data.mul_(1.3)
    assert abs(standardized_chi_square(counts, probabilities)) < 3


TRAPS = GenerationConfig(
    repetition_penalty=5.0,
    suppress_tokens=[1, 2],
    begin_suppress_tokens=[3],
    forced_eos_token_id=4,
    forced_bos_token_id=5,
    bad_words_ids=[[6]],
    no_repeat_ngram_size=1,
    min_new_tokens=3,
    max_new_tokens=1,
    max_length=2,
    max_time=1e-9,
    top_k=1,
    top_p=0.1,
    min_p=0.5,
    typical_p=0.3,
    epsilon_cutoff=0.3,
    eta_cutoff=0.3,
    temperature=0.1,
    num_beams=3,
    eos_token_id=[1, 2],
    exponential_decay_length_penalty=(1, 5.0),
    cache_implementation="static",
    return_dict_in_generate=True,
)


def test_settings_of_the_models_folder_change_nothing(speaker, monkeypatch):
    given = torch.tensor([[BOS, 1, 1], [BOS, 2, 1]] * 20)
    as_it_is = drawn(speaker, given, ends=[6], length=9)
    monkeypatch.setattr(speaker, "generation_config", TRAPS)
    seen = []
    processors = type(speaker)._get_logits_processor

    def noted(self, *args, **kwargs):
        found = processors(self, *args, **kwargs)
        seen.append(found)
        return found

    monkeypatch.setattr(type(speaker), "_get_logits_processor", noted)
    trapped = drawn(speaker, given, ends=[6], length=9)
    assert speaker.generation_config is TRAPS
    assert all(torch.equal(one, other) for one, other in zip(as_it_is, trapped, strict=True))
    assert [[type(one).__name__ for one in every] for every in seen] == [["_Draw"]]


def test_a_sequence_ends_with_the_first_end_that_is_drawn(speaker):
    """Ends that were given end nothing, and nothing of the padding stays."""
    given = torch.tensor([[5, 6, 1]] * 50)
    found = drawn(speaker, given, ends=[5, 6], length=8)
    assert {len(row) for row in found} == {4, 5, 6, 7, 8}
    for row in found:
        new = row[3:].tolist()
        assert row[:3].tolist() == [5, 6, 1]
        assert len(new) >= 1
        assert not {5, 6} & set(new[:-1])
        assert len(row) == 8 or new[-1] in (5, 6)


def test_a_token_without_probability_is_never_drawn():
    """Neither at the ends of the vocabulary, nor between others."""
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 1.0, -1e4, -torch.inf]).expand(20_000, 6)
    left = draw._Draw(1.0, 0, torch.device("cpu"))(None, logits)
    tokens = left.argmax(dim=1)
    assert (left.isfinite().sum(dim=1) == 1).all()
    counts = torch.bincount(tokens, minlength=6)
    assert counts.nonzero().flatten().tolist() == [1, 3]
    assert int(counts[3]) / 20_000 == pytest.approx(1 / (1 + math.exp(-1)), abs=0.02)


def test_the_seed_alone_decides(speaker):
    given = torch.full((20, 1), BOS)
    before = torch.get_rng_state()
    one = torch.stack(drawn(speaker, given, seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, torch.stack(drawn(speaker, given, seed=5)))
    assert not torch.equal(one, torch.stack(drawn(speaker, given, seed=6)))


def piece_of(model, sequences, given, k):
    lengths = torch.tensor([0, *map(len, sequences)])
    return Piece(
        tokens=torch.cat(sequences),
        starts=lengths.cumsum(0),
        language=torch.zeros(len(sequences), dtype=torch.int64),
        given=torch.full((len(sequences),), given),
        targets=targets_of(model, sequences, k),
    )


@pytest.mark.parametrize("head", ["found", "not found"])
def test_targets_are_the_models_log_softmax_at_each_place(model, head, monkeypatch):
    """Sequences of unlike lengths, a few at a time, as each gives alone."""
    if head == "found":
        monkeypatch.setattr(draw, "_PLACES_AT_ONCE", 2 * 9)
        monkeypatch.setattr("freezetrain.head.chunks.places_at_once", lambda *_: 4)
    else:
        monkeypatch.setattr(draw, "_LOGITS_AT_ONCE", 2 * 9 * 400)
        monkeypatch.setattr(draw, "find_head", lambda _: None)
    torch.manual_seed(0)
    sequences = [torch.randint(2, 400, (length,)) for length in (9, 2, 5, 7, 1)]
    targets = targets_of(model, sequences, k=6)
    place = 0
    for sequence in sequences:
        with torch.no_grad():
            logs = model(sequence[None]).logits[0].double().log_softmax(1)
        for log in logs:
            best = log.argsort(descending=True)[:6]
            assert targets.tokens[place].tolist() == best.tolist()
            torch.testing.assert_close(
                targets.log_probs[place].double(), log[best], rtol=0, atol=1e-5
            )
            rest = (1 - log[best].exp().sum()).log()
            assert float(targets.rest[place]) == pytest.approx(float(rest), abs=1e-5)
            place += 1
    assert place == len(targets) == 24


def test_drawn_places_are_those_before_drawn_tokens(speaker):
    piece = piece_of(speaker, [torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2])], 2, 3)
    assert drawn_places(piece).tolist() == [False, True, True, False, False, True, False]


def test_draws_that_do_not_follow_the_model_are_refused(speaker):
    """As of a generate() that keeps a wrong cache."""
    given = torch.full((100, 1), BOS)
    check_drawn(piece_of(speaker, drawn(speaker, given, length=20), 1, 3))
    with pytest.raises(CheckError, match="does not draw what it says"):
        check_drawn(piece_of(speaker, drawn(speaker, given, length=20, temperature=2.0), 1, 3))


def loud(model):
    """With much to choose from at each place, and opinions."""
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    return model.eval()


SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "eos_token_id": 1}
MIXED = ["sliding_attention", "full_attention"]
WIDE = {**SMALL, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 24}
MODELS = {
    "mixed": (Gemma3TextConfig(**WIDE, head_dim=8, sliding_window=5, layer_types=MIXED), True),
    "mamba": (MambaConfig(**SMALL, state_size=4), True),
    "rwkv": (RwkvConfig(**SMALL, attention_hidden_size=16), False),  # its state is not handed on
    "sliding": (MistralConfig(**WIDE, sliding_window=5), True),
    "in bfloat16": (MistralConfig(**WIDE, dtype="bfloat16"), True),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_other_kinds_draw_what_they_say(name):
    config, cache = MODELS[name]
    torch.manual_seed(0)
    model = loud(AutoModelForCausalLM.from_config(config))
    assert (model.dtype == torch.bfloat16) == (name == "in bfloat16")
    given = torch.full((40, 3), 2)
    assert cache_works(model, given, 24, OTHERWISE) == cache
    sequences = draw_sequences(
        model, given, length=24, temperature=1.0, ends=[1], seed=0, cache=cache
    )
    check_drawn(piece_of(model, sequences, 3, 8))


def test_generation_is_tried_within_the_models_places_alone():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=5)
    assert cache_works(
        loud(AutoModelForCausalLM.from_config(config)), torch.full((9, 3), 2), 5, OTHERWISE
    )


def test_a_cache_with_room_changes_nothing(speaker, monkeypatch):
    given = torch.full((20, 3), 2)
    roomy = drawn(speaker, given, ends=[6], length=30)
    assert generate.roomy_cache(speaker, 30) is not None
    monkeypatch.setattr(generate, "roomy_cache", lambda *_: None)
    theirs = drawn(speaker, given, ends=[6], length=30)
    assert all(torch.equal(one, other) for one, other in zip(roomy, theirs, strict=True))


def test_a_model_that_is_not_causal_and_one_without_numbers_are_refused(speaker, monkeypatch):
    torch.manual_seed(0)
    config = XLNetConfig(vocab_size=50, d_model=16, n_layer=2, n_head=2, d_inner=24)
    with pytest.raises(CheckError, match=r"XLNetLMHeadModel cannot generate what.*or draw not$"):
        cache_works(loud(XLNetLMHeadModel(config)), torch.full((40, 3), 2), 24, OTHERWISE)
    monkeypatch.setattr(speaker.lm_head, "weight", torch.nn.Parameter(torch.full((7, 16), nan)))
    with pytest.raises(CheckError, match="the model's logits are not finite"):
        cache_works(speaker, torch.full((4, 3), 2), 24, OTHERWISE)
    with pytest.raises(CheckError, match="the model's logits are not finite"):
        targets_of(speaker, [torch.arange(4)], 3)
