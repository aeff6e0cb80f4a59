import pytest

from freezetrain.errors import UserError
from freezetrain.report.text import shortest_endings


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["meta-llama/Llama-2-7b-hf"], ["Llama-2-7b-hf"]),
        (["runs/a/model", "runs/b/model/"], ["a/model", "b/model"]),
        (["/x/base", "runs/a/model", "/y/a/model"], ["base", "runs/a/model", "y/a/model"]),
        (["model", "a/model"], ["model", "a/model"]),
        (["a/b", "b/a", "c"], ["b", "a", "c"]),
    ],
)
def test_as_much_as_tells_them_apart(paths, names):
    assert shortest_endings(paths) == names


def test_the_same_twice_is_refused():
    with pytest.raises(UserError, match=r"each path once, got runs/a 2 times"):
        shortest_endings(["runs/a", "b", "runs/a/"])
