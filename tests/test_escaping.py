"""What cannot be seen is made visible, and what people write stays as it is."""

import pytest

from freezetrain.escaping import shortened, visible, visible_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[31m\x07\x7f\x9b", "\\x1b[31m\\x07\\x7f\\x9b"),
        ("ab\u202ecd\u2066\u061c", "ab\\u202ecd\\u2066\\u061c"),
        ("a\u200bb\ufeff\u2028\U000e0041", "a\\u200bb\\ufeff\\u2028\\U000e0041"),
        ("caf\udce9", "caf\\udce9"),
        ("日本語 فارسی‌ها हिन्दी é 😀\u00a0", "日本語 فارسی‌ها हिन्दी é 😀\u00a0"),
        ("a\\nb", "a\\nb"),
    ],
)
def test_a_name_is_one_line_of_what_can_be_seen(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


def test_text_keeps_its_line_breaks():
    assert visible_lines("a\nb\r\x1b") == "a\nb\\r\\x1b"


def test_long_text_is_cut():
    assert shortened("abcde", 5) == "abcde"
    assert shortened("abcdef", 5) == "abcd…"
