"""The NLL, and word and byte perplexity, that lm-evaluation-harness gives on the same texts."""

import copy
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from freezetrain.evaluation import encode_documents, evaluate_documents

pytest.importorskip("lm_eval", reason="lm_eval is not installed")

TEXTS = [
    "All human beings are born free and equal in dignity and rights.",
    "人人生而自由，在尊严和权利上一律平等。",
    "a",
    "Everyone has the right to life, liberty and security of person. " * 6,  # several windows
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=48, initializer_range=0.4,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("first", ["bos", "eos"])
@pytest.mark.parametrize("max_length", [8, 48])
def test_it_is_the_rolling_log_likelihood(model, tokenizer, first, max_length):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    if first == "eos":  # the first token is then predicted from EOS, by both
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.bos_token = None
    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, max_length=max_length, batch_size=3,
        add_bos_token=False, device="cpu",
    )  # fmt: skip
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(TEXTS)
    ]
    theirs = harness.loglikelihood_rolling(requests, disable_tqdm=True)
    documents = {"texts": encode_documents(TEXTS, tokenizer)}
    found = evaluate_documents(model, documents, max_length=max_length)["texts"]
    assert (-found.nll).tolist() == pytest.approx(theirs, rel=1e-6)


def test_word_and_byte_perplexity(model, tokenizer, tmp_path):
    """Through a task of the harness, as users run it."""
    import json

    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "texts.yaml").write_text(
        "task: texts\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {json.dumps(str(data))}}}}}\n"
        "output_type: loglikelihood_rolling\n"
        "test_split: test\n"
        'doc_to_text: ""\n'
        'doc_to_target: "{{text}}"\n'
        "metric_list:\n"
        "  - metric: word_perplexity\n"
        "  - metric: byte_perplexity\n"
        "  - metric: bits_per_byte\n"
    )
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=False, device="cpu"),
        tasks=["texts"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]["texts"]
    documents = {"texts": encode_documents(TEXTS, tokenizer)}
    found = evaluate_documents(model, documents, max_length=48)["texts"].figures()
    words = sum(len(text.split()) for text in TEXTS)
    words += sum(text.endswith(" ") for text in TEXTS)  # theirs counts what a last blank leaves
    assert found.byte_perplexity == pytest.approx(results["byte_perplexity,none"], rel=1e-6)
    assert found.bits_per_byte == pytest.approx(results["bits_per_byte,none"], rel=1e-6)
    assert math.exp(found.nll / words) == pytest.approx(results["word_perplexity,none"], rel=1e-5)
