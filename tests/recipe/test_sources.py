"""Which texts: what cannot be read as told is refused."""

import pytest

from freezetrain.errors import UserError
from freezetrain.recipe.sources import TextSource, check_held_out


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"folder": "a", "hub": "b"}, "folder must be left out where hub"),
        ({"hub": "b", "streaming": True}, "documents must be given"),
        ({"streaming": True}, "hub must be given"),
    ],
)
def test_refused(fields, complaint):
    with pytest.raises(UserError, match=complaint):
        TextSource(**fields)


def test_held_out_documents_may_be_another_split_of_the_data_set():
    trained = TextSource(hub="set", test_one_in=0)
    check_held_out(trained, TextSource(hub="set", hub_split="validation"), "texts", "watch.texts")
    with pytest.raises(UserError, match=r"texts and watch\.texts read the same texts"):
        check_held_out(trained, TextSource(hub="set"), "texts", "watch.texts")
