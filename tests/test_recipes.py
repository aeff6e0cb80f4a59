"""Each recipe trains: a tiny model of the same architecture, local texts of the same format."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from freezetrain.cli import main
from freezetrain.cli.verbs import parse
from freezetrain.corpora import read_languages
from freezetrain.recipe import TextSource, TrainRecipe, yaml12
from freezetrain.regions import Region

ROOT = Path(__file__).parent.parent
RECIPES = {path.name: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
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
    "freezetrain/base": LlamaConfig(**TINY, tie_word_embeddings=False),
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


def hub_layout(folder: Path, names: dict[str, str]) -> Path:
    """A data set as on the hub: a configuration a language, Parquet, a header in README.md."""
    import datasets

    configs = []
    for language, name in names.items():
        texts = read_languages(TextSource(), [language])[language]
        rows = {
            "text": [*texts.train, *texts.test],
            "id": list(range(len(texts.train) + len(texts.test))),
        }
        path = folder / "data" / name / "train" / "000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows).to_parquet(path)
        configs.append(
            {
                "config_name": name,
                "data_files": [{"split": "train", "path": f"data/{name}/train/*.parquet"}],
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
            source["folder"] = str(text_files(folder / "texts", recipe["weights"]))
    if "region" in recipe:
        live = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
        recipe["region"] = str(folder / "region.safetensors")
        Region.random(live, 0.01, seed=0).save(recipe["region"])
    settings = recipe["optimization"]
    settings.pop("max_tokens", None)
    settings |= {"max_steps": 3, "sequence_length": 16, "micro_batch": 2, "batch_tokens": 64}
    settings["warmup_steps"] = 1
    recipe["checkpoint_every"] = 2
    recipe.setdefault("watch", {})["every_n_steps"] = 2
    if not recipe["watch"].get("off"):
        watched = recipe["watch"].get("languages", [*recipe["languages"], "en"])
        recipe["watch"] |= {"languages": watched[:3], "max_length": 64}
    recipe["workers"] = 1
    return recipe


def text_files(folder: Path, languages) -> Path:
    """A JSONL file of each language; of one of the built-in ones by what follows the hyphen."""
    folder.mkdir()
    for name in languages:
        built_in = name.partition("-")[2]
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
        environment = {
            **os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "freezetrain", *command],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stderr[-5000:]
    return tmp_path / "run"


PROCESSES = {"paper_llama2_7b_zh.yaml": 2, "8b_zero3.yaml": 2}


def test_all_recipes_are_here():
    named = {yaml12.load(path.read_text())["model"]["path"] for path in RECIPES.values()}
    assert named == MODELS.keys()
    assert PROCESSES.keys() <= RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_as_it_stands(name):
    """Fields, values and batch arithmetic, on the devices that it asks for."""
    recipe = parse(["train", str(RECIPES[name])]).recipe
    assert isinstance(recipe, TrainRecipe)
    assert recipe.optimization.accumulate(recipe.engine.devices or 1) >= 1
    assert RECIPES[name].read_text().startswith("#")


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


def test_paper_recipe_is_the_papers():
    """Micro-batch 2 x accumulation 16 x 8 GPUs x 512 tokens; the longest run has 200K samples."""
    recipe = parse(["train", str(RECIPES["paper_llama2_7b_zh.yaml"])]).recipe
    settings = recipe.optimization
    assert (settings.micro_batch, settings.accumulate(8), settings.sequence_length) == (2, 16, 512)
    assert settings.steps(0) == -(-200_000 // 256)
