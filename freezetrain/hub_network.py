"""Whether the Hugging Face hub can be reached: asked once, before libraries try for a minute."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Thread
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, validate_repo_id

from freezetrain.user_files import reason

_PATIENCE = 3  # seconds that the hub has for an answer


def can_be_id(path: str) -> bool:
    """Whether ``path`` can name a model or a data set on the hub: ``name`` or ``owner/name``."""
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def why_offline() -> str | None:
    """Why the hub is not to be asked, or None where it answers. At most ``_PATIENCE`` seconds."""
    if constants.is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    failure = _failure(constants.ENDPOINT, minute=int(time.monotonic() // 60))
    return failure and f"{constants.ENDPOINT} cannot be reached ({failure})"


@lru_cache(maxsize=1)
def _failure(endpoint: str, minute: int) -> str | None:
    """What a request to the hub ends with; None: an answer that its libraries can work with.

    ``minute``: of this process; the hub is asked once in each.
    """
    outcomes: list[str | None] = []

    def ask() -> None:
        try:
            status = get_session().head(endpoint, timeout=_PATIENCE).status_code
            outcomes.append(None if status < 500 else f"it answers with status {status}")
        except Exception as error:  # a network fails in the ways of several libraries
            outcomes.append(reason(error))

    # In a thread, as nothing else bounds the look-up of a name or an answer of single bytes.
    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    return outcomes[0] if outcomes else f"no answer in {_PATIENCE} seconds"


@contextmanager
def offline_unless_reachable() -> Iterator[None]:
    """Inside, libraries take what their caches hold, at once, where the hub is not to be asked."""
    if constants.is_offline_mode() or why_offline() is None:
        yield
        return
    configs: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [config.HF_HUB_OFFLINE for config in configs]
    try:
        for config in configs:
            config.HF_HUB_OFFLINE = True
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config.HF_HUB_OFFLINE = value
