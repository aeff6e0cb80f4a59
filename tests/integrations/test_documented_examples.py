"""Every example of docs/trainers.md runs as it stands and prints what is said there."""

import re
from pathlib import Path

import pytest
from two_ranks import launch

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
EXAMPLE = re.compile(
    r"^###? (?P<title>[^\n]+)\n(?:(?!^###? ).)*?"
    r"^```python\n(?P<code>.*?)^```\n\nprints `(?P<output>.*?)`",
    re.DOTALL | re.MULTILINE,
)
EXAMPLES = {match["title"]: match for match in EXAMPLE.finditer(PAGE.read_text(encoding="utf-8"))}
DISTRIBUTED = ("FSDP2", "DeepSpeed")  # in this order: the first makes the process group


def test_each_trainer_has_an_example() -> None:
    page = PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"^###? (.+)$", page, re.MULTILINE)
    for prose in ("Watching forgetting", "Checkpoints, resuming, exporting"):
        titles.remove(prose)
    assert titles == [*EXAMPLES]
    assert set(titles) == {
        "Plain loop",
        "Lightning",
        "Lightning Fabric",
        "Hugging Face Trainer",
        "Accelerate",
        "DeepSpeed",
        "FSDP2",
        "Watching in a plain loop",
        "Watching in Lightning",
        "Watching in Lightning Fabric",
        "Watching in the Hugging Face Trainer",
    }
    assert page.count("```python") == len(titles)


@pytest.mark.parametrize("title", EXAMPLES)
def test_example_is_short(title: str) -> None:
    assert len(EXAMPLES[title]["code"].splitlines()) <= 25


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("title", [title for title in EXAMPLES if title not in DISTRIBUTED])
def test_example(title: str, capsys: pytest.CaptureFixture) -> None:
    exec(compile(EXAMPLES[title]["code"], f"{title}.py", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines()[-1] == EXAMPLES[title]["output"]


def test_distributed_examples(tmp_path: Path) -> None:
    files = [tmp_path / f"{title}.py" for title in DISTRIBUTED]
    for title, file in zip(DISTRIBUTED, files, strict=True):
        file.write_text(EXAMPLES[title]["code"], encoding="utf-8")
    worker = Path(__file__).with_name("documented_worker.py")
    for output in launch(tmp_path, worker, *files):
        printed = [line for line in output.splitlines() if "frozen entries" in line]
        assert printed == [EXAMPLES[title]["output"] for title in DISTRIBUTED]
