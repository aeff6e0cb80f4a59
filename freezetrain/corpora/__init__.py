"""Texts: reading them, one language a file, and splitting them by document."""

from freezetrain.corpora.texts import BUILT_IN, Language, languages_in, read_languages

__all__ = ["BUILT_IN", "Language", "languages_in", "read_languages"]
