"""Every example of docs/other_trainers.md runs as it stands and prints what is said there."""

import re
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from freezetrain.regions import Region

PAGE = Path(__file__).parents[2] / "docs" / "other_trainers.md"
TEXT = PAGE.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n\nprints `(.*?)`", TEXT, re.DOTALL | re.MULTILINE)


def test_each_example_says_what_it_prints():
    assert len(EXAMPLES) == TEXT.count("```python") == 4
    assert all(len(code.splitlines()) <= 25 for code, _ in EXAMPLES)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_example(number, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(__file__).parent / "stand_ins")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=32, n_layer=1, n_head=2))
    Region.random(model, 0.05, seed=0).save("region.safetensors")
    code, output = EXAMPLES[number]
    exec(compile(code, f"example_{number}.py", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines()[-1] == output
