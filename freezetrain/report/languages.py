"""English names of languages, beside their codes."""

NAMES = {
    "ar": "Arabic",
    "cs": "Czech",
    "da": "Danish",
    "de": "German",
    "el": "Greek",
    "en": "English",
    "es": "Spanish",
    "fa": "Persian",
    "fi": "Finnish",
    "fr": "French",
    "hu": "Hungarian",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "ml": "Malayalam",
    "ms": "Malay",
    "nl": "Dutch",
    "no": "Norwegian",
    "pl": "Polish",
    "pt": "Portuguese",
    "ro": "Romanian",
    "ru": "Russian",
    "sv": "Swedish",
    "sw": "Swahili",
    "ta": "Tamil",
    "tr": "Turkish",
    "uk": "Ukrainian",
    "vi": "Vietnamese",
    "zh": "Chinese",
}


def language_name(code: str) -> str:
    """``"Chinese"`` for ``"zh"``; an unknown code as it is."""
    return NAMES.get(code, code)


def language_label(code: str, longest: int = 22) -> str:
    """``"Chinese zh"`` for a plot; an unknown code once, cut to ``longest`` characters."""
    label = f"{NAMES[code]} {code}" if code in NAMES else code
    return label if len(label) <= longest else label[: longest - 1] + "…"


def language_and_code(code: str) -> str:
    """``"Chinese (zh)"`` for a table; an unknown code as it is."""
    return f"{NAMES[code]} ({code})" if code in NAMES else code
