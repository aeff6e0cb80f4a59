"""`--print_config` prints a recipe: parsed again it is the same."""

import pytest

from freezetrain.cli import main
from freezetrain.cli.verbs import parse

COMMANDS = [
    ("train", "--model", "x", "--languages", "[no, yes, 'null']", "--weights", "{no: .25, y: .75}",
     "--optimization.learning_rate", "3e-5", "--texts.names", "{no: nob_Latn}"),
    ("train", "--model", "x", "--engine.kind", "zero-3", "--engine.deepspeed",
     "{zero_optimization: {reduce_bucket_size: 1000}}", "--replay", "{share: 0.1}"),
    ("select", "--kind", "random", "--like", "1e5"),
    ("score", "--model", "x", "--methods", "[wanda]", "--snapshots", "[10]", "--seed", "7"),
    ("paper", "--model", "x", "--ratios", "[0.01]", "--languages", "[no, en]", "--prompts", "[no]"),
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--print_config", "--print-config"])
def test_round_trip(command, option, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, option])
    assert stopped.value.code == 0
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert parse([command[0], str(file)]).recipe == parse(command).recipe
    assert list(tmp_path.iterdir()) == [file]  # and nothing was run
