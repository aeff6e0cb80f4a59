"""Upload of the trained model to the Hugging Face hub, where a recipe asks for it."""

from pathlib import Path

from huggingface_hub import HfApi, get_token

from freezetrain.errors import UserError
from freezetrain.hub_network import why_offline
from freezetrain.user_files import reason


def require_repository(name: str) -> None:
    """See to it, before anything is trained, that the model can be uploaded to ``name``.

    A repository that is not there is made, for its owner alone to see. UserError where the hub
    cannot be reached or refuses.
    """
    if why := why_offline():
        raise UserError(
            f"push is {name!r}, and {why}; leave push out, and upload the model when it is there"
        )
    if get_token() is None:
        raise UserError(
            f"push is {name!r}, and there is no token for the hub here; log in with `hf auth "
            "login`, or set HF_TOKEN"
        )
    try:
        HfApi().create_repo(name, private=True, exist_ok=True)
    except Exception as error:  # of the network's libraries too
        raise UserError(
            f"cannot push to {name!r}: {reason(error)}; check the name and what the token allows, "
            "or leave push out"
        ) from error


def push(folder: Path, name: str) -> str | None:
    """Upload ``folder`` to the repository ``name``; why it failed, None where it did not."""
    try:
        HfApi().upload_folder(
            repo_id=name, folder_path=folder, commit_message="Trained with freezetrain"
        )
    except Exception as error:  # the model is there, and a run does not end in a traceback for this
        return reason(error)
    return None


def push_command(folder: Path, name: str = "OWNER/NAME") -> str:
    """The hub's own tool, which does the same."""
    return f"hf upload {name} {folder}"
