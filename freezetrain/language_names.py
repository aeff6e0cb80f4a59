"""Names that no evaluated language can have: those of figures of all languages together."""

from collections.abc import Iterable

from freezetrain.errors import UserError

TOGETHER = ("mean", "worst")
"""Of all held-out languages: in tables, and as names of a brake's limits."""

TOGETHER_TAGS = (*TOGETHER, "backward_transfer", "target_gain")
"""What loggers call, behind ``forgetting/``, figures of all languages and of the target."""


def check_evaluated(languages: Iterable[str]) -> None:
    """UserError for a name that cannot be told from one of a figure of all languages together."""
    for language in languages:
        if language in TOGETHER_TAGS:  # some loggers make files and folders of names
            raise UserError(
                f"a language is called {language!r}, which is the name of a figure of all "
                "languages together; give the language another name (in a recipe by texts.names)"
            )
