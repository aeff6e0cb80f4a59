"""The estimate against closed forms; benchmarks/memory.py compares it with real runs."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from freezetrain.recipe.optimization import Engine, Optimization
from freezetrain.recipe.sources import ModelSource
from freezetrain.regions import Region
from freezetrain.training.adapters import add_adapters
from freezetrain.training.memory import estimate
from freezetrain.training.recipe import Lora, Penalty, Pull, Rehearse, TrainRecipe, Watch

WORLD = 4
CONFIG = LlamaConfig(
    vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False,
    bos_token_id=0, eos_token_id=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)


@pytest.fixture(scope="module")
def weights(model):
    return sum(p.numel() for p in model.parameters())


def recipe(kind, precision="32-true", **more):
    settings = Optimization(
        sequence_length=64, micro_batch=2, batch_tokens=64 * 2 * WORLD, precision=precision
    )
    engine = Engine(kind=kind, **more)
    return TrainRecipe(
        ModelSource("x"), optimization=settings, engine=engine, watch=Watch(off=True)
    )


def parts(memory):
    return {part.name: part.device for part in memory.parts}


@pytest.mark.parametrize(
    ("kind", "precision", "held", "masters", "gradients", "moments"),
    [
        # bytes of each weight, by rank
        ("ddp", "32-true", 4, 0, 4, 8),
        ("ddp", "bf16-mixed", 4, 0, 4, 8),
        ("ddp", "bf16-true", 2, 0, 2, 4),
        ("fsdp2", "32-true", 4 / WORLD, 0, 4 / WORLD, 8 / WORLD),
        ("fsdp2", "bf16-mixed", 4 / WORLD, 0, 4 / WORLD, 8 / WORLD),
        ("zero-1", "bf16-mixed", 2, 4 / WORLD, 2, 8 / WORLD),
        ("zero-2", "bf16-mixed", 2, 4 / WORLD, 2 / WORLD, 8 / WORLD),
        ("zero-2", "32-true", 4, 4 / WORLD, 4 / WORLD, 8 / WORLD),
        ("zero-3", "bf16-mixed", 2 / WORLD, 4 / WORLD, 2 / WORLD, 8 / WORLD),
    ],
)
def test_what_an_engine_keeps_of_each_weight(
    model, weights, kind, precision, held, masters, gradients, moments
):
    sizes = parts(estimate(model, recipe(kind, precision), WORLD))
    assert sizes["weights"] == held * weights
    assert sizes.get("fp32 masters", 0) == masters * weights
    assert sizes["gradients"] == gradients * weights
    assert sizes["AdamW's moments"] == moments * weights


def test_more_ranks_take_less_each(model):
    def peak(kind, world):
        training = recipe(kind, "bf16-mixed", deepspeed=_small_buckets(kind))
        training.optimization.batch_tokens = 64 * 2 * world
        return estimate(model, training, world).peak

    for kind in ("zero-1", "zero-2", "zero-3", "fsdp2"):
        assert peak(kind, 8) < peak(kind, 4) < peak(kind, 2)
    assert peak("ddp", 8) == peak("ddp", 2)
    assert peak("zero-3", 8) < peak("zero-2", 8) <= peak("zero-1", 8) < peak("ddp", 8)


def _small_buckets(kind):
    """This model is smaller than what DeepSpeed gathers and collects at once by default."""
    small = {"reduce_bucket_size": 1, "stage3_max_live_parameters": 1}
    return {"zero_optimization": small} if kind.startswith("zero") else {}


def test_groups_of_devices_each_hold_all(model, weights):
    memory = parts(estimate(model, recipe("fsdp2", replicas=2), WORLD))
    assert memory["weights"] == 4 * weights / 2
    assert memory["AdamW's moments"] == 8 * weights / 2


def test_checkpointing_batch_and_mask_change_the_activations(model):
    def activations(training):
        sizes = parts(estimate(model, training, WORLD))
        return sizes["activations of the blocks"], sizes.get("document mask", 0)

    plain = recipe("ddp")
    with_less = recipe("ddp", gradient_checkpointing=True)
    assert activations(with_less)[0] == 4 * 2 * 64 * 64 * 4  # the inputs of four blocks
    assert activations(plain)[0] > 10 * activations(with_less)[0]
    half = activations(recipe("ddp", gradient_checkpointing=2))[0]
    mean = (activations(plain)[0] + activations(with_less)[0]) / 2
    assert half == pytest.approx(mean, rel=0.01)
    double = replace(
        plain, optimization=replace(plain.optimization, micro_batch=4, batch_tokens=1024)
    )
    shared = 2 * 64 * 16 * 4 * 2  # cosines and sines of the positions, of one sequence each
    assert abs(activations(double)[0] - 2 * activations(plain)[0]) <= shared
    masked = replace(plain, optimization=replace(plain.optimization, document_mask=True))
    assert activations(masked)[1] == 2 * 64 * 64 * 5


def test_the_region_adds_its_entries_and_values(model, weights):
    live = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)
    region = Region.random(live, 0.01, seed=0)
    for kind, entries, values in (
        ("ddp", 4, 8),
        ("zero-2", 4 + 4 / WORLD, 8 / WORLD),
        ("zero-3", 4 + 4 / WORLD, 8 / WORLD),
        ("fsdp2", 4 / WORLD, 8 / WORLD),
    ):
        sizes = parts(estimate(model, recipe(kind), WORLD, region))
        assert sizes["region: entries"] == entries * region.count
        assert sizes["region: values, and gradients when audited"] == values * region.count
    without = estimate(model, recipe("ddp"), WORLD)
    frozen = estimate(model, recipe("ddp"), WORLD, region)
    assert frozen.peak - without.peak == frozen.region > 0
    assert without.region == 0


def test_bits_count_as_what_training_holds_of_them(model, weights):
    live = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)
    for ratio, held in ((0.1, "indices"), (0.3, "bits")):  # kept as bits, both
        region = Region.random(live, ratio, seed=0)
        indices = 4 * region.count
        on_gpu = indices if held == "indices" else region.nbytes
        for gpu, entries in ((True, on_gpu), (False, indices)):
            sizes = parts(estimate(model, recipe("ddp"), 1, region, on_gpu=gpu))
            assert sizes["region: entries"] == entries


def test_offloaded_state_is_in_cpu_memory(model, weights):
    on_gpu = estimate(model, recipe("zero-3", "bf16-mixed"), WORLD)
    optimizer = estimate(model, recipe("zero-3", "bf16-mixed", offload="optimizer"), WORLD)
    everything = estimate(model, recipe("zero-3", "bf16-mixed", offload="all"), WORLD)
    moved = 4 + 8 + 4  # masters, moments, the gradients' fp32 copy
    assert optimizer.host - on_gpu.host == moved * weights / WORLD
    assert everything.host - optimizer.host == 2 * weights / WORLD
    assert everything.peak < optimizer.peak < on_gpu.peak


def test_gradients_of_the_last_step_are_gone_in_the_forward_pass(model):
    """Unless the engine keeps its buffers, or they are added up."""
    for kind, forward, loss in (
        ("fsdp2", False, False),
        ("zero-2", False, False),
        ("ddp", True, True),
    ):
        (gradients,) = (
            p for p in estimate(model, recipe(kind), WORLD).parts if p.name == "gradients"
        )
        assert ("forward" in gradients.during, "loss" in gradients.during) == (forward, loss)
        training = recipe(kind)
        training.optimization.batch_tokens *= 2
        (gradients,) = (p for p in estimate(model, training, WORLD).parts if p.name == "gradients")
        assert {"forward", "loss"} <= set(gradients.during)


def test_an_embedding_tied_to_the_head_has_a_gradient_of_its_own_for_a_moment():
    with torch.device("meta"):
        config = LlamaConfig(
            **CONFIG.to_dict() | {"vocab_size": 1 << 15, "tie_word_embeddings": True}
        )
        tied = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    name, weights = "gradient of the embedding, tied to the head", 64 << 15
    training = recipe("ddp")
    block = parts(estimate(tied, training, WORLD))["activations of a block, in its backward pass"]
    assert parts(estimate(tied, training, WORLD))[name] == 4 * weights - block > 0
    training.optimization.batch_tokens *= 2
    assert parts(estimate(tied, training, WORLD))[name] == 2 * 4 * weights - block
    alone = recipe("auto")
    assert parts(estimate(tied, alone, 1))[name] == 4 * weights - block
    alone.optimization.batch_tokens = None
    assert name not in parts(estimate(tied, alone, 1))
    tied.get_input_embeddings().weight.requires_grad_(False)
    assert name not in parts(estimate(tied, training, WORLD))


def test_the_peak_is_the_moment_that_takes_most(model):
    memory = estimate(model, recipe("zero-2"), WORLD)
    sums = {
        moment: sum(part.device for part in memory.parts if moment in part.during)
        for moment in ("load", "forward", "loss", "backward", "step", "watch")
    }
    assert memory.peak == int(max(sums.values()))
    assert sums[memory.moment] == max(sums.values())


def test_adapters_alone_have_gradients_and_moments(weights):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)
    add_adapters(model, Lora(4, targets=["q_proj"]), seed=0)
    sizes = parts(estimate(model, recipe("ddp"), WORLD))
    trained = 4 * 4 * (64 + 64)  # four layers of A [4, 64] and B [64, 4]
    assert sizes["weights"] == 4 * (weights + trained)
    assert sizes["gradients"] == 4 * trained
    assert sizes["AdamW's moments"] == 8 * trained


def test_what_is_kept_of_the_base(model, weights):
    training = recipe("ddp", "bf16-true")
    for penalty, kept in ((Penalty(1.0), 2), (Penalty(1.0, "scores"), 6)):
        sizes = parts(estimate(model, replace(training, penalty=penalty), WORLD))
        assert sizes["the penalty's base and factors"] == kept * weights
    with_base = estimate(model, replace(training, average_with_base=0.5), WORLD)
    without = estimate(model, training, WORLD)
    assert with_base.host - without.host == 4 * weights
    assert with_base.peak == without.peak


@pytest.mark.parametrize(
    ("kind", "share"), [("ddp", 1), ("fsdp2", 1 / WORLD), ("zero-2", 1 / WORLD)]
)
def test_a_pull_keeps_the_base_of_what_a_rank_steps(model, weights, kind, share):
    live = AutoModelForCausalLM.from_config(CONFIG, dtype=torch.float32)
    region = Region.random(live, 0.01, seed=0)
    training = recipe(kind)
    plain = estimate(model, training, WORLD)
    for pull, stored, device, host, entries in (
        (Pull(1.0), torch.float32, 4, 0, 0),
        (Pull(1.0), torch.bfloat16, 2, 0, 0),
        (Pull(1.0, on_cpu=True), torch.bfloat16, 0, 2, 0),
        (Pull(1.0, fisher="scores"), torch.bfloat16, 2, 0, 4 * weights),
        (Pull(1.0, {"region": 2.0}), torch.bfloat16, 2, 0, 4 * region.count),
    ):
        memory = estimate(
            model,
            replace(training, pull=pull),
            WORLD,
            pulled=[region] if pull.regions else [],
            stored=stored,
        )
        sizes = parts(memory)
        assert sizes.get("pull: the base", 0) == device * share * weights
        assert sizes.get("pull: regions' entries, and factors", 0) == entries * share
        loaded = region.nbytes if pull.regions else 0
        held = sum(part.host for part in memory.parts if part.name.startswith("pull"))
        assert held == host * share * weights + loaded
        assert memory.at("step") > plain.at("step") + (device + entries / weights) * share * weights


def test_a_pull_of_offloaded_masters_is_in_cpu_memory(model, weights):
    training = recipe("zero-3", "bf16-mixed", offload="optimizer")
    plain = estimate(model, training, WORLD)
    pulled = estimate(model, replace(training, pull=Pull(1.0)), WORLD, stored=torch.bfloat16)
    assert pulled.peak == plain.peak
    assert pulled.host > plain.host + 2 * weights / WORLD


def test_the_average_is_kept_in_fp32_and_made_in_cpu_memory(model, weights):
    settings = recipe("ddp", "bf16-true")
    averaged = replace(settings, optimization=replace(settings.optimization, ema_decay=0.9))
    without, memory = (estimate(model, training, WORLD) for training in (settings, averaged))
    assert parts(memory)["average of the weights"] == 4 * weights
    assert memory.host - without.host == 4 * weights  # a second copy of the model, as it is loaded


def test_logits_are_held_some_places_at_a_time(model, weights, monkeypatch):
    monkeypatch.setattr("freezetrain.training.batch_memory.places_at_once", lambda *_: 10)
    in_chunks = parts(estimate(model, recipe("ddp"), WORLD))
    head = 512 * 64
    assert in_chunks["logits, some places at a time"] == 2 * 4 * 10 * 512
    assert in_chunks["gradient of the head, fp32"] == 4 * head
    assert "logits" not in in_chunks
    narrow = parts(estimate(model, recipe("zero-2", "bf16-mixed"), WORLD))
    assert narrow["logits, some places at a time"] == (2 * 4 + 2 * 2) * 10 * 512
    assert narrow["gradient of the head, as the weights are"] == 2 * head
    with torch.device("meta"):
        frozen = AutoModelForCausalLM.from_config(CONFIG)
    frozen.lm_head.requires_grad_(False)
    assert "gradient of the head, fp32" not in parts(estimate(frozen, recipe("ddp"), WORLD))
    frozen.get_output_embeddings = None
    whole = parts(estimate(frozen, recipe("ddp"), WORLD))
    assert whole["logits"] == 4 * 2 * 64 * 512


def test_rehearsal_by_kl_adds_logits_of_its_places_and_the_base_where_that_is_kept(model, weights):
    plain = recipe("ddp")
    logits = 2 * 64 * 512  # of a micro-batch, which may be rehearsed whole

    def added(**fields):
        changed = replace(plain, rehearse=Rehearse("x", **fields))
        sizes, before = (parts(estimate(model, of, WORLD)) for of in (changed, plain))
        return {name: size for name, size in sizes.items() if name not in before}

    assert added() == {"KL, some places at a time": 2 * 4 * logits}
    assert added(teacher="model") == {
        "KL, some places at a time": 2 * 4 * logits,
        "the base, which is compared with": 4 * weights,
        "hidden states of the base": 4 * 2 * 64 * 64,
    }
    assert added(loss="next_token") == {}
