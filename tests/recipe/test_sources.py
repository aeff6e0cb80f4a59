"""Which texts: what cannot be read as told is refused."""

import pytest

from freezetrain.errors import UserError
from freezetrain.recipe.sources import EvaluationTexts, TextSource, check_held_out


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"folder": "a", "hub": "b"}, "folder must be left out where hub"),
        ({"folder": "a", "streaming": True, "documents": 5}, "documents must be left out where a"),
        ({"streaming": True}, "hub must be given, or folder, to read texts by streaming"),
        ({"text_field": []}, "text_field must be the name of a field, or a list of different"),
        ({"text_field": ["a", ""]}, "text_field must be the name of a field, or a list of differ"),
        ({"text_field": ["a", "a"]}, "text_field must be the name of a field, or a list of differ"),
        ({"key_field": ""}, "key_field must be the name of a field, or left out"),
        ({"messages_field": ""}, "messages_field must be the name of a field"),
        ({"messages_field": "m", "text_field": "t"}, "text_field must be left out where messages"),
    ],
)
def test_refused(fields, complaint):
    with pytest.raises(UserError, match=complaint):
        TextSource(**fields)


@pytest.mark.parametrize("name", ["mean", "worst", "backward_transfer", "target_gain"])
def test_names_of_figures_of_all_languages_are_no_languages(name):
    with pytest.raises(UserError, match=rf"^a language is called '{name}', .*by texts\.names\)$"):
        EvaluationTexts(languages=["en", name])


def test_held_out_documents_may_be_another_split_of_the_data_set():
    trained = TextSource(hub="set", test_one_in=0)
    check_held_out(trained, TextSource(hub="set", hub_split="validation"), "texts", "watch.texts")
    with pytest.raises(UserError, match=r"texts and watch\.texts read the same texts"):
        check_held_out(trained, TextSource(hub="set"), "texts", "watch.texts")
    trained = TextSource(folder="a", text_field="b", text_separator=" ")
    with pytest.raises(UserError, match=r"another text_field \('b' and 'c'\), text_separator \("):
        check_held_out(trained, TextSource(folder="a", text_field="c"), "texts", "watch.texts")
