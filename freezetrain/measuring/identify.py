"""Which language a text is in: py3langid, an optional extra."""

from collections.abc import Mapping, Sequence

from freezetrain.errors import UserError, near_misses
from freezetrain.extras import imported_for

_NO_LANGUAGE = "zxx"  # of ISO 639 and of py3langid: no linguistic content


class LanguageIdentifier:
    """py3langid (https://github.com/adbar/py3langid), among all of its languages.

    ``languages``: names of languages that must be known, as ``zh``, ``zho_Hans`` or ``pt-BR``.
    ``given``: name → code, where the name does not say it. ``codes``: name → code.

    Raises UserError where the extra is not installed, and for a language that is not known.
    """

    def __init__(self, languages: Sequence[str], given: Mapping[str, str]) -> None:
        with imported_for("generation", "generation.documents", ", or leave generation out"):
            from py3langid.langid import MODEL_FILE
            from py3langid.langid import LanguageIdentifier as Identifier
        self._identifier = Identifier.from_model_file(MODEL_FILE)
        self._known = sorted({*self._identifier.labels} - {_NO_LANGUAGE})
        for name in given:
            if name not in languages:
                raise UserError(
                    f"generation.codes names a language {name!r} in which nothing is generated"
                    f"{near_misses(name, languages)}; those are {' '.join(languages)}"
                )
        self.codes = {name: self._code(name, given.get(name)) for name in languages}

    def __call__(self, text: str) -> str | None:
        """The code of the language that ``text`` is in; None: in none, as without a letter."""
        if not any(map(str.isalpha, text)):
            return None
        code: str = self._identifier.classify(text)[0]
        return None if code == _NO_LANGUAGE else code

    def _code(self, name: str, given: str | None) -> str:
        if given is not None:
            if given in self._known:
                return given
            raise UserError(
                f"generation.codes gives {name} the code {given!r}, of which py3langid knows no "
                f"language{near_misses(given, self._known)}; it knows {' '.join(self._known)}"
            )
        for code in _possible_codes(name):
            if code in self._known:
                return code
        raise UserError(
            f"py3langid, which tells languages apart, knows none by the name {name!r}; give the "
            f"code that it has (generation.codes {{{name}: CODE}}), or generation.languages "
            f"without it; it knows {' '.join(self._known)}"
        )


def _possible_codes(name: str) -> list[str]:
    """Codes that a name may stand for, such as ``arb`` and ``ar`` of ``arb_Arab``."""
    import langcodes

    try:
        return [
            str(langcodes.Language.get(tag).language)
            for tag in (name, langcodes.standardize_tag(name, macro=True))
        ]
    except ValueError:  # no language tag
        return [name]
