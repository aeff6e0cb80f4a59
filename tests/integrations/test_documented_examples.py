"""Every example of docs/trainers.md runs as it stands and prints what is said there."""

import re
from pathlib import Path

import pytest
from forked_ranks import run_ranks

from freezetrain.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "trainers.md"
EXAMPLE = re.compile(
    r"^###? (?P<title>[^\n]+)\n(?:(?!^###? ).)*?"
    r"^```python\n(?P<code>.*?)^```\n\nprints `(?P<output>.*?)`",
    re.DOTALL | re.MULTILINE,
)
EXAMPLES = {match["title"]: match for match in EXAMPLE.finditer(PAGE.read_text(encoding="utf-8"))}
LONGER = (
    "Accelerate",
    "Pulling in Lightning",
    "Rehearsing in a plain loop",
    "Rehearsing in the Hugging Face Trainer",
    "Watching in Lightning",
    "Watching in Lightning Fabric",
    "Watching in the Hugging Face Trainer",
)
DISTRIBUTED = ("FSDP2", "DeepSpeed")


def test_each_trainer_has_an_example() -> None:
    page = PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"^###? (.+)$", page, re.MULTILINE)
    for prose in (
        "What to install",
        "Pulling to the base",
        "Rehearsing the base's own words",
        "Watching forgetting",
        "Checkpoints, resuming, exporting",
    ):
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
        "Pulling in a plain loop",
        "Pulling in Lightning",
        "Pulling in the Hugging Face Trainer",
        "Rehearsing in a plain loop",
        "Rehearsing in the Hugging Face Trainer",
        "Watching in a plain loop",
        "Watching in Lightning",
        "Watching in Lightning Fabric",
        "Watching in the Hugging Face Trainer",
    }
    assert page.count("```python") == len(titles)


@pytest.mark.parametrize("title", EXAMPLES)
def test_example_is_short(title: str) -> None:
    assert len(EXAMPLES[title]["code"].splitlines()) <= 25


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's command draws."""
    (words,) = re.findall(r"^    freezetrain (rehearse .+)$", PAGE.read_text(), re.MULTILINE)
    out = tmp_path_factory.mktemp("rehearsal") / "drawn"
    with pytest.raises(SystemExit) as ended:
        main([*words.removesuffix("drawn").split(), str(out)])
    assert not ended.value.code
    return out


def run(title: str) -> None:
    exec(compile(EXAMPLES[title]["code"], f"{title}.py", "exec"), {"__name__": "__main__"})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "title",
    [
        pytest.param(title, marks=pytest.mark.exhaustive if title in LONGER else ())
        for title in EXAMPLES
        if title not in DISTRIBUTED
    ],
)
def test_example(title: str, capsys: pytest.CaptureFixture, request: pytest.FixtureRequest) -> None:
    if '"drawn"' in EXAMPLES[title]["code"]:
        Path("drawn").symlink_to(request.getfixturevalue("drawn"))
    run(title)
    assert capsys.readouterr().out.splitlines()[-1] == EXAMPLES[title]["output"]


def run_example(rank: int, world: int, title: str) -> None:
    run(title)


@pytest.mark.parametrize("title", DISTRIBUTED)
def test_distributed_example(title: str, tmp_path: Path) -> None:
    run_ranks(run_example, title, logs=tmp_path, group=False)
    for rank in (0, 1):
        lines = (tmp_path / f"{rank}.out").read_text().splitlines()
        assert [line for line in lines if "frozen entries" in line] == [EXAMPLES[title]["output"]]
