"""Texts: reading them, one language at a time, and splitting them by document."""

from freezetrain.corpora.folder import BUILT_IN
from freezetrain.corpora.texts import Language, Texts, languages_in, read_languages

__all__ = ["BUILT_IN", "Language", "Texts", "languages_in", "read_languages"]
