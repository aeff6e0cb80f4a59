"""Each recipe is valid; with --exhaustive each one runs too, with tiny models and texts."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from forked_ranks import run_ranks
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config
from verbs import on_a_rank

from freezetrain.cli import main
from freezetrain.cli.command_line import parse
from freezetrain.data.texts import read_languages
from freezetrain.evaluation import PAPER_SAMPLES
from freezetrain.paper.recipe import PAPER_CORE
from freezetrain.recipe import yaml12
from freezetrain.recipe.sources import ModelSource, TextSource
from freezetrain.regions import Region
from freezetrain.sampling import rehearse
from freezetrain.sampling.recipe import RehearseRecipe

ROOT = Path(__file__).parent.parent
PATHS = {path.name: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}


def verb_of(path: Path) -> str:
    """The verb that the recipe's own comment runs it by."""
    (verb,) = set(
        re.findall(rf"freezetrain (\w+) (?:--config )?recipes/{path.name}", path.read_text())
    )
    return verb


def recipes_of(verb: str) -> dict[str, Path]:
    return {name: path for name, path in PATHS.items() if verb_of(path) == verb}


RECIPES = recipes_of("train")
TINY = {
    "vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
# The architectures of what the recipes name.
MODELS = {
    "meta-llama/Llama-2-7b-hf": LlamaConfig(**TINY, tie_word_embeddings=False, dtype="float16"),
    "Qwen/Qwen3-0.6B-Base": Qwen3Config(**TINY, head_dim=8, tie_word_embeddings=True),
    "Qwen/Qwen3-8B-Base": Qwen3Config(**TINY, head_dim=8, tie_word_embeddings=False),
    "built-in": LlamaConfig(**TINY, tie_word_embeddings=False),
    "OUT/config": LlamaConfig(**TINY, tie_word_embeddings=False),
}


def tiny_model(path: str, folder: Path, tokenizer) -> Path:
    """A model of the architecture of ``path``, in the type that it is stored in."""
    config = MODELS[path]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if path.startswith("Qwen"):
        model = model.to(torch.bfloat16)
    elif path.startswith("meta-llama"):
        model = model.half()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def hub_layout(folder: Path, names: dict[str, str], split: str = "train", key: str = "id") -> Path:
    """A data set as on the hub: a configuration a language, Parquet, a header in README.md."""
    import datasets

    configs = []
    for language, name in names.items():
        texts = read_languages(TextSource(), [language])[language]
        rows = {
            "text": [*texts.train, *texts.test],
            key: list(range(len(texts.train) + len(texts.test))),
        }
        path = folder / "data" / name / split / "000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows).to_parquet(path)
        configs.append(
            {
                "config_name": name,
                "data_files": [{"split": split, "path": f"data/{name}/{split}/*.parquet"}],
            }
        )
    header = yaml.safe_dump({"configs": configs})
    (folder / "README.md").write_text(f"---\n{header}---\n")
    return folder


def localized(recipe: dict, folder: Path, tokenizer) -> dict:
    """The recipe with what it names replaced by something tiny; all else as it is."""
    model = tiny_model(recipe["model"]["path"], folder / "base", tokenizer)
    recipe["model"]["path"] = str(model)
    sources = [recipe.get("texts", {}), recipe.get("replay", {}).get("texts", {})]
    for number, source in enumerate(sources):
        if "hub" in source:
            source["hub"] = str(hub_layout(folder / f"hub-{number}", source["names"]))
        if "folder" in source:
            source["folder"] = str(
                text_files(folder / "texts", recipe.get("weights", ["en", "zh"]))
            )
    if "region" in recipe:
        live = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        recipe["region"] = str(folder / "region.safetensors")
        Region.random(live, 0.01, seed=0).save(recipe["region"])
    if "rehearse" in recipe:
        recipe["rehearse"]["folder"] = str(folder / "rehearsal")
        (folder / "rehearsal").mkdir()
        drawn = RehearseRecipe(ModelSource(str(model)), sequences=8, sequence_length=16, k=8)
        rehearse.run(drawn, folder / "rehearsal")
    settings = recipe["optimization"]
    settings.pop("max_tokens", None)
    settings |= {"max_steps": 3, "sequence_length": 16, "micro_batch": 2, "batch_tokens": 64}
    settings["warmup_steps"] = 1
    recipe["checkpoint_every"] = 2
    recipe.setdefault("watch", {}).pop("at_samples", None)
    recipe["watch"]["every_n_steps"] = 2
    if not recipe["watch"].get("off"):
        watched = recipe["watch"].get("languages", [*recipe["languages"], "en"])
        recipe["watch"] |= {"languages": watched[:3], "documents": 2, "max_length": 64}
    recipe["workers"] = 1
    return recipe


def text_files(folder: Path, languages) -> Path:
    """A JSONL file of each language: of the built-in one after its hyphen, else of this name."""
    folder.mkdir()
    for name in languages:
        built_in = name.partition("-")[2] or name
        texts = read_languages(TextSource(), [built_in])[built_in].train
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def trains(recipe: dict, tmp_path: Path, processes: int) -> Path:
    """Run it through the command line; the folder that it leaves."""
    recipe.setdefault("engine", {})["devices"] = processes
    (tmp_path / "recipe.yaml").write_text(yaml12.dump(recipe), encoding="utf-8")
    command = ["train", "recipe.yaml", "--out", "run"]
    if processes == 1 and not recipe["engine"].get("kind", "auto").startswith("zero"):
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 0
    else:
        logs = tmp_path / "logs"
        codes = run_ranks(on_a_rank, *command, world=processes, group=False, logs=logs, timeout=200)
        assert codes == [0] * processes, (logs / "0.err").read_text()[-5000:]
    return tmp_path / "run"


def parsed(name: str, *more: str):
    return parse([verb_of(PATHS[name]), "--config", str(PATHS[name]), *more]).recipe


@pytest.mark.parametrize("name", PATHS)
def test_recipe_is_valid(name):
    """Fields and values; of a training job also the arithmetic of its batch, on its devices."""
    assert PATHS[name].read_text().startswith("#")
    recipe = parsed(name)
    if name in RECIPES:
        written = yaml12.load(RECIPES[name].read_text())
        assert recipe.optimization.accumulate(recipe.engine.devices or 1) >= 1
        for field, value in written["optimization"].items():
            assert getattr(recipe.optimization, field) == value
        assert written["model"]["path"] in MODELS


def test_training_recipe_of_the_paper():
    """Micro-batch 2 x accumulation 16 x 8 GPUs x 512 tokens; the longest run has 200K samples."""
    recipe = parsed("paper_llama2_7b_zh.yaml")
    settings = recipe.optimization
    assert (settings.micro_batch, settings.accumulate(8), settings.sequence_length) == (2, 16, 512)
    assert settings.steps(0) == -(-200_000 // 256)
    assert recipe.watch.at_samples == list(PAPER_SAMPLES[1:])


def test_recipe_of_the_paper():
    recipe = parsed("paper.yaml", "--model", "elsewhere")
    assert recipe.model.path == "elsewhere"
    assert len(recipe.languages) == 30
    assert set(recipe.core_languages) == set(PAPER_CORE)


def test_compare_recipe():
    """81 runs of about 10 million tokens on 4 processes."""
    recipe = parsed("compare.yaml")
    runs = [
        (variant, rate, seed)
        for variant in recipe.variants
        for rate, seed in product(recipe.learning_rates, recipe.seeds)
    ]
    assert len(runs) == 81
    settings = recipe.training(*runs[0]).optimization
    assert settings.steps(0) * settings.accumulate(1) * 4 * 1024 == pytest.approx(10e6, rel=0.02)


PROCESSES = {"paper_llama2_7b_zh.yaml": 2, "8b_zero3.yaml": 2}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_trains(name, tmp_path, tokenizer):
    recipe = localized(yaml12.load(RECIPES[name].read_text()), tmp_path, tokenizer)
    run = trains(recipe, tmp_path, PROCESSES.get(name, 1))
    results = json.loads((run / "results.json").read_text())
    assert results["steps"] == 3
    before = AutoModelForCausalLM.from_pretrained(
        recipe["model"]["path"], dtype="auto"
    ).state_dict()
    after = AutoModelForCausalLM.from_pretrained(run / "model", dtype="auto").state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before)
    if "region" in recipe:
        for key, frozen in Region.load(recipe["region"]).masks().items():
            assert after[key].dtype == before[key].dtype
            assert torch.equal(after[key][frozen], before[key][frozen]), key
    if not recipe["watch"].get("off"):
        held_out = set(recipe["watch"]["languages"]) - set(recipe["languages"])
        assert held_out
        assert held_out <= results["forgetting"]["languages"].keys()
    if "replay" in recipe:
        assert set(recipe["replay"]["languages"]) <= results["data"].keys()


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["of all", "to the law", "no"]
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""


def task_files(folder: Path, tasks: list[str]) -> Path:
    """Local tasks of the same names."""
    folder.mkdir()
    rows = [{"question": f"Article {n} says that", "answer": n % 3} for n in range(12)]
    (folder / "data.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in tasks:
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=folder / "data.json"))
    return folder


def run(verb: str, recipe: dict, tmp_path: Path) -> dict:
    """Run the recipe through the command line; its results."""
    (tmp_path / "recipe.yaml").write_text(yaml12.dump(recipe), encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--config", "recipe.yaml", "--out", "out"])
    assert stopped.value.code == 0
    assert (tmp_path / "out" / "report.html").exists()
    return json.loads((tmp_path / "out" / "results.json").read_text())


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", recipes_of("forgetting"))
def test_forgetting_recipe_runs(name, tmp_path, tokenizer):
    recipe = yaml12.load(PATHS[name].read_text())
    architecture = recipe["base"]["path"]
    for number, source in enumerate([recipe["base"], *recipe["models"]]):
        source["path"] = str(tiny_model(architecture, tmp_path / f"model-{number}", tokenizer))
    evaluation = recipe["evaluation"]
    texts, languages = evaluation["texts"], evaluation["languages"]
    names = texts.get("names") or {language: language for language in languages}
    layout = texts.get("hub_split", "train"), texts["key_field"]
    texts["hub"] = str(hub_layout(tmp_path / "hub", names, *layout))
    evaluation["max_length"], evaluation["overlap"] = 64, min(evaluation.get("overlap", 1), 32)
    if "documents" in evaluation:
        evaluation["documents"] = 5
    benchmarks = recipe.get("benchmarks")
    if benchmarks:
        pytest.importorskip("lm_eval", reason="the extra benchmarks is not installed")
        folder = task_files(tmp_path / "tasks", benchmarks["tasks"])
        benchmarks |= {"folder": str(folder), "limit": 6}
    if "generation" in recipe:
        recipe["generation"]["documents"] = 2
    results = run("forgetting", recipe, tmp_path)
    assert len(results["runs"]) == len(recipe["models"])
    for model in results["runs"]:
        change = model["history"]["evaluations"][1]["forgetting"]
        assert {*change["languages"], change["target"]} == {*languages}
        documents = {row["documents"] for row in model["texts"]}
        assert documents == {evaluation.get("documents", 31)}  # the Declaration has 31
        if "generation" in recipe:
            generated = model["generation"]["languages"]
            assert {name: len(found["texts"]) for name, found in generated.items()} == (
                dict.fromkeys(languages, 2)
            )
        if benchmarks:
            tasks = model["benchmarks"]["tasks"]
            assert list(tasks) == benchmarks["tasks"]
            for task, metric in benchmarks["metrics"].items():
                assert tasks[task]["metric"] == metric


@pytest.mark.exhaustive
def test_compare_recipe_runs(tmp_path, tokenizer):
    recipe, asked = yaml12.load(PATHS["compare.yaml"].read_text()), parsed("compare.yaml")
    train, kept = recipe["train"], ["en", "es"]
    train["model"]["path"] = str(tiny_model(train["model"]["path"], tmp_path / "base", tokenizer))
    train["watch"] |= {"languages": ["sw", *kept], "documents": 2, "max_length": 32}
    train["optimization"] |= {
        "max_steps": 2, "sequence_length": 16, "micro_batch": 2, "batch_tokens": 64,
        "warmup_steps": 1, "precision": "32-true",
    }  # fmt: skip
    train["workers"] = 1
    recipe["scoring"] |= {"sequences": 4, "sequence_length": 16, "workers": 1}
    recipe["rehearsals"]["own"] |= {"languages": kept, "sequences": 8, "prompt_tokens": 4, "k": 8}
    recipe |= {"learning_rates": recipe["learning_rates"][:2], "seeds": [0]}
    for variant in recipe["variants"].values():
        if "learning_rates" in variant:
            variant["learning_rates"] = variant["learning_rates"][:2]
    replay = recipe["variants"]["replay 5%"]["changes"]["replay"]
    replay["languages"] = kept
    for source in (train, train["watch"], replay):
        source["texts"] |= {"folder": str(tmp_path / "texts"), "test_one_in": 4}
    text_files(tmp_path / "texts", ["sw", *kept])
    results = run("compare", recipe, tmp_path)
    assert results["variants"].keys() == asked.variants.keys()
    assert len(results["runs"]) == 2 * len(asked.variants)
    for name, variant in results["variants"].items():
        assert (variant["frozen"] is not None) == (asked.variants[name].region is not None)
        assert variant["trained_on_old"] == (0.05 if "replay" in name else 0)
    assert {*results["languages"]} == {"sw", *kept}


@pytest.mark.exhaustive
def test_paper_recipe_runs(tmp_path, tokenizer):
    recipe = yaml12.load(PATHS["paper.yaml"].read_text())
    recipe["model"]["path"] = str(tiny_model(recipe["model"]["path"], tmp_path / "base", tokenizer))
    recipe["model"]["dtype"] = "float32"  # on a CPU
    recipe["languages"] = [*recipe["core_languages"][:2], "no"]
    recipe["core_languages"] = recipe["core_languages"][:2]
    texts = recipe["texts"]
    names = {code: texts["hub_config"].format(language=code) for code in recipe["languages"]}
    texts |= {"hub": str(hub_layout(tmp_path / "hub", names)), "documents": 30, "test_one_in": 4}
    recipe |= {
        "sequences": 8, "snapshots": [2], "sequence_length": 16, "max_length": 32, "documents": 1,
        "random_seeds": [0], "ratios": recipe["ratios"][:1], "weights": 1, "batch": 4,
    }  # fmt: skip
    results = run("paper", recipe, tmp_path)
    assert results["languages"]["evaluated"] == recipe["languages"]
    assert [text["prompt"] for text in results["ablation"]["texts"]] == recipe["prompts"]
    assert {*results["scores"]} == {*recipe["languages"]}
