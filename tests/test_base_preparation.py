"""recipes/quickstart_base.py makes what a small base is pre-trained on."""

import json
import lzma
import runpy
import sys
import zlib
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

SCRIPT = Path(__file__).parents[1] / "recipes" / "quickstart_base.py"


def test_texts_tokenizer_and_configuration(tmp_path, monkeypatch):
    names = [f"page-{number}" for number in range(64)]
    held_out = {name for name in names if zlib.crc32(name.encode()) % 16 == 0}
    assert held_out
    for language in ("en", "tr", "zh"):
        with lzma.open(tmp_path / f"{language}.jsonl.xz", "wt", encoding="utf-8") as file:
            for name in names:
                text = f"{language} {name} " + "word " * 1000
                file.write(json.dumps({"page": name, "text": text}) + "\n")
    out = tmp_path / "out"
    told = ["--targets", "tr", "zh", "--hidden", "32", "--heads", "2", "--layers", "3"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), str(out), *told])
    runpy.run_path(str(SCRIPT), run_name="__main__")

    config, tokenizer = (
        kind.from_pretrained(out / "config") for kind in (AutoConfig, AutoTokenizer)
    )
    assert (config.hidden_size, config.num_hidden_layers) == (32, 3)
    assert len(tokenizer) <= config.vocab_size
    read = {
        path.stem: [json.loads(line)["text"] for line in path.read_text().splitlines()]
        for path in (out / "texts").glob("*.jsonl")
    }
    pages = {text.split()[1] for text in read["help-en"]}
    assert pages == set(names) - held_out
    for target in ("tr", "zh"):  # nearly unseen: a few pages, and no Declaration
        assert 60_000 <= sum(map(len, read[f"help-{target}"])) < 70_000
        assert f"udhr-{target}" not in read
    assert "udhr-en" in read
