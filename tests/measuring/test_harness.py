"""Local tasks through lm-evaluation-harness, against plain loops; no network is asked."""

import builtins
import json
import math
import sys
from functools import cache

import pytest
import torch

from freezetrain.errors import UserError
from freezetrain.evaluation.benchmarks import Score
from freezetrain.measuring.harness import Harness, scores_of
from freezetrain.measuring.recipe import Benchmarks

TaskManager = pytest.importorskip(
    "lm_eval.tasks", reason="the extra benchmarks is not installed"
).TaskManager

STEPS = 4  # tokens generated
CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
WORDS = """
task: local_words
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{words}}}}"
generation_kwargs: {{until: ["</s>"], max_gen_toks: {steps}, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
GROUPS = """
group: {name}
task: [local_choice, local_words]
{more}
"""


@pytest.fixture
def read_once(monkeypatch):
    """The harness's own task files, thousands, are read once for a folder."""
    monkeypatch.setattr("lm_eval.tasks.TaskManager", cache(TaskManager))


@torch.no_grad()
def generated(model, tokenizer, question):
    ids = tokenizer(question)["input_ids"]
    start = len(ids)
    while len(ids) < start + STEPS:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


@torch.no_grad()
def log_likelihood(model, tokenizer, question, choice):
    context = len(tokenizer(question)["input_ids"])
    ids = torch.tensor([tokenizer(f"{question} {choice}")["input_ids"]])
    logs = model(ids).logits[0].double().log_softmax(-1)
    return sum(float(logs[at - 1, ids[0, at]]) for at in range(context, ids.shape[1]))


@pytest.fixture(scope="module")
def questions(make_model, tokenizer):
    """Questions on two models; every other word to generate is what the first one generates."""
    first = make_model()
    choices = [["peace", "the dignity of all", "no"], ["in law", "a", "education for everyone"]]
    return [
        {
            "question": f"Article {number} says that all are {word}",
            "choices": choices[number % 2],
            "answer": number % 3,
            "words": generated(first, tokenizer, f"Article {number} says that all are {word}")
            if number % 2
            else "something else",
        }
        for number in range(6)
        for word in ("free", "equal before the law")
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, questions):
    path = tmp_path_factory.mktemp("tasks")
    (path / "data.json").write_text("".join(json.dumps(row) + "\n" for row in questions))
    for name, text in (("choice", CHOICE), ("words", WORDS)):
        (path / f"{name}.yaml").write_text(text.format(data=path / "data.json", steps=STEPS))
    aggregate = "aggregate_metric_list: [{metric: acc, weight_by_size: true, filter_list: none}]"
    (path / "one.yaml").write_text(GROUPS.format(name="with_a_figure", more=aggregate))
    (path / "two.yaml").write_text(GROUPS.format(name="without_a_figure", more=""))
    return path


def settings(folder, *tasks, **more):
    return Benchmarks(tasks=list(tasks), folder=str(folder), **more)


def plain_accuracy(model, tokenizer, questions, length=lambda choice: 1):
    right = 0
    for row in questions:
        values = [
            log_likelihood(model, tokenizer, row["question"], choice) / length(choice)
            for choice in row["choices"]
        ]
        right += values.index(max(values)) == row["answer"]
    return right / len(questions)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.exhaustive), 5])
def test_scores_are_those_of_plain_loops(folder, questions, make_model, tokenizer, batch):
    run = Harness(settings(folder, "local_choice", "local_words", batch=batch))
    seen = set()
    for seed in (0, 1):
        model = make_model(seed)
        scores = run.scores(model, tokenizer)
        assert list(scores) == ["local_choice", "local_words"]
        assert list(scores["local_choice"]) == ["acc", "acc_norm"]
        expected = {
            ("local_choice", "acc"): plain_accuracy(model, tokenizer, questions),
            ("local_choice", "acc_norm"): plain_accuracy(model, tokenizer, questions, len),
            ("local_words", "exact_match"): sum(
                generated(model, tokenizer, row["question"]) == row["words"] for row in questions
            ) / len(questions),
        }  # fmt: skip
        for (task, metric), value in expected.items():
            score = scores[task][metric]
            assert score.value == pytest.approx(value)
            assert score.higher_is_better is True
            n = len(questions)  # of a mean of zeros and ones, with n − 1
            assert score.standard_error == pytest.approx(math.sqrt(value * (1 - value) / (n - 1)))
        seen |= {*expected.values()}
    assert {0.0, 0.5} < seen  # of words; and other figures of choices


@pytest.mark.parametrize("shots", [2, pytest.param(0, marks=pytest.mark.exhaustive)])
def test_solved_examples_stand_before_each_question(
    tmp_path, make_model, tokenizer, monkeypatch, shots
):
    """Against prompts that are written out: the first examples of another split."""
    from lm_eval.models.huggingface import HFLM

    words = ("law", "home", "all", "no", "work", "rest")
    rows = [
        {"question": f"{word} {n}:", "choices": ["yes", "no", "an end"], "answer": (n + 1) % 3}
        for n, word in enumerate(words)
    ]
    examples = [{**row, "question": f"so {row['question']}"} for row in rows[:4]]
    for name, split in (("data", rows), ("examples", examples)):
        (tmp_path / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in split))
    task = CHOICE.format(data=tmp_path / "data.json").replace(
        "{test: ", f"{{train: {tmp_path}/examples.json, test: "
    )
    task += "training_split: train\nfewshot_config: {sampler: first_n}\n"
    (tmp_path / "choice.yaml").write_text(task)
    solved = "".join(
        f"{row['question']} {row['choices'][row['answer']]}\n\n" for row in examples[:shots]
    )
    asked = [{**row, "question": solved + row["question"]} for row in rows]
    run, contexts = HFLM.loglikelihood, set()

    def recorded(lm, requests, **more):
        contexts.update(request.args[0] for request in requests)
        return run(lm, requests, **more)

    monkeypatch.setattr(HFLM, "loglikelihood", recorded)
    model = make_model()
    found = Harness(settings(tmp_path, "local_choice", num_fewshot=shots))
    score = found.scores(model, tokenizer)["local_choice"]["acc"]
    assert contexts == {row["question"] for row in asked}
    assert score.value == pytest.approx(plain_accuracy(model, tokenizer, asked))
    assert score.num_fewshot == shots


@pytest.mark.exhaustive
@pytest.mark.usefixtures("read_once")
def test_limit_and_groups(folder, questions, make_model, tokenizer):
    model = make_model()
    scores = Harness(settings(folder, "local_choice", limit=5)).scores(model, tokenizer)
    expected = plain_accuracy(model, tokenizer, questions[:5])
    assert scores["local_choice"]["acc"].value == pytest.approx(expected)
    whole = Harness(settings(folder, "local_choice", "local_words")).scores(model, tokenizer)
    assert Harness(settings(folder, "without_a_figure")).scores(model, tokenizer) == whole
    group = Harness(settings(folder, "with_a_figure")).scores(model, tokenizer)
    assert list(group) == ["with_a_figure"]
    assert group["with_a_figure"]["acc"].value == whole["local_choice"]["acc"].value


def test_scores_of_filters_and_missing_errors():
    found = {"alias": "gsm", "sample_len": 3, "exact_match,strict": 0.5, "f1,none": 0.25}
    found |= {"exact_match_stderr,strict": "N/A", "f1_stderr,none": 0.1, "note,none": "text"}
    results = {
        "results": {"gsm": found}, "group_subtasks": {}, "higher_is_better": {"gsm": {"f1": True}}
    }  # fmt: skip
    expected = {"exact_match,strict": Score(0.5, None, None), "f1": Score(0.25, 0.1, True)}
    assert scores_of(results) == {"gsm": expected}


def test_what_is_no_number_is_none():
    results = {
        "results": {"t": {"f1,none": math.nan, "f1_stderr,none": math.nan, "ppl,none": math.inf}},
        "group_subtasks": {}, "higher_is_better": {"t": {"f1": True}},
    }  # fmt: skip
    assert scores_of(results) == {
        "t": {"f1": Score(None, None, True), "ppl": Score(None, None, None)}
    }


def test_a_figure_past_the_float_range_is_refused(tmp_path, make_model, tokenizer):
    (tmp_path / "data.json").write_text(json.dumps({"text": "人" * 500}))  # a single "word"
    task = {
        "task": "rolling", "dataset_path": "json", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.json")}},
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }  # fmt: skip
    (tmp_path / "rolling.yaml").write_text(json.dumps(task))
    with pytest.raises(UserError, match="refuses the tasks: math range error"):
        Harness(settings(tmp_path, "rolling")).scores(make_model(), tokenizer)


@pytest.mark.exhaustive  # reads the harness's own tasks
def test_unknown_tasks(folder):
    with pytest.raises(UserError, match=r"no task 'local_chois' \(did you mean 'local_choice'"):
        Harness(settings(folder, "local_chois"))
    with pytest.raises(UserError, match=r"no task 'arc_eazy' \(did you mean 'arc_easy'"):
        Harness(Benchmarks(tasks=["arc_eazy"]))


def test_folders_without_tasks(tmp_path):
    with pytest.raises(UserError, match="nowhere, there is no such folder"):
        Harness(settings(tmp_path / "nowhere", "local_choice"))
    (tmp_path / "t.yaml").write_text("task: t\n a: [")
    with pytest.raises(UserError, match=r"found none but .*t\.yaml, which it cannot read"):
        Harness(settings(tmp_path, "local_choice"))


def test_a_task_without_its_data(tmp_path):
    (tmp_path / "x.yaml").write_text(CHOICE.format(data=tmp_path / "gone.json"))
    with pytest.raises(UserError, match=r"cannot load the task 'local_choice'.*gone\.json"):
        Harness(settings(tmp_path, "local_choice"))


@pytest.mark.parametrize("place", ["here", "included"])
def test_python_of_a_task_is_run_where_it_is_asked_for_alone(tmp_path, folder, place):
    ran = tmp_path / "ran"
    within = tmp_path / ("tasks" if place == "here" else "elsewhere")
    for path in (tmp_path / "tasks", within):
        path.mkdir(exist_ok=True)
    code = f"open({str(ran)!r}, 'w')\ndef words(row):\n    return row['words']\n"
    (within / "evil.py").write_text(code)
    function = "doc_to_target: !function evil.words\n"
    text = CHOICE.format(data=folder / "data.json").replace("doc_to_target: answer\n", "")
    if place == "here":
        text += function
    else:
        (within / "more.yaml").write_text(function)
        text += f"include: {within}/more.yaml\n"
    (tmp_path / "tasks" / "task.yaml").write_text(text)
    with pytest.raises(UserError, match=r"evil\.words.*say benchmarks.run_functions: true"):
        Harness(settings(tmp_path / "tasks", "local_choice"))
    assert not ran.exists()
    Harness(settings(tmp_path / "tasks", "local_choice", run_functions=True))
    assert ran.exists()


def test_templates_of_a_task_call_nothing(tmp_path, folder, make_model, tokenizer):
    evil = '{{ "".__class__.__mro__[1].__subclasses__() }}'
    text = CHOICE.format(data=folder / "data.json").replace("{{question}}", evil.replace('"', "'"))
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(UserError, match="unsafe"):
        Harness(settings(tmp_path, "local_choice")).scores(make_model(), tokenizer)


def test_a_machine_without_the_harness(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.partition(".")[0] == "lm_eval":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match=r"pip install 'freezetrain\[benchmarks\]', or leave"):
        Harness(Benchmarks(tasks=["arc_easy"]))


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"limit": 5}, "benchmarks.limit must be left out where benchmarks.tasks is"),
        ({"tasks": ["x"], "limit": 0}, "benchmarks.limit must be 1 or more"),
        ({"tasks": ["x"], "num_fewshot": -1}, "benchmarks.num_fewshot must be 0 or more"),
        ({"tasks": ["x"], "batch": 0}, "benchmarks.batch must be 1 or more"),
        ({"tasks": ["x"], "seed": -1}, "benchmarks.seed must be from 0"),
    ],
)
def test_values_that_cannot_be(more, complaint):
    with pytest.raises(UserError, match=complaint):
        Benchmarks(**more)
