"""The Hugging Face hub: an export with its model card, where others find it."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from whisper_lightning.errors import UserError


def check_repository(name: str) -> None:
    """Refuse what the hub would refuse, before anything is written.

    Raises:
        UserError: It is no name of a repository.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub: {name!r} is no repository's name ({error}); such as ana/whisper-es") from None


def list_files(folder: Path) -> list[tuple[str, int]]:
    """Return what `push` would send: names in the repository, and bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [(path.relative_to(folder).as_posix(), path.stat().st_size) for path in files]


def push(folder: Path, name: str, *, private: bool) -> str:
    """Send a folder to the hub as one commit; files that are there already keep their history.

    Args:
        folder: In Hugging Face layout, with its card.
        name: Of the repository, such as `ana/whisper-es`; it is made if need be.
        private: Make it for its owner alone. One that is there stays what it is.

    Returns:
        The address of the commit.

    Raises:
        UserError: Nobody is logged in, the hub refuses, or cannot be reached. The folder stays.
    """
    hub = HfApi()
    try:
        hub.create_repo(name, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Model of Whisper Lightning")
    except LocalTokenNotFoundError:
        reason = "nobody is logged in"
    except OfflineModeIsEnabled:
        reason = "HF_HUB_OFFLINE is set"
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = "the token may not write there" if status in (401, 403) else f"status {status}"
    except Exception as error:  # of the network: which library it uses depends on the hub's version
        reason = " ".join(str(error).split())[:300] or type(error).__name__
    else:
        return str(done.commit_url)
    raise UserError(
        f"--push_to_hub: {name} was not sent to {hub.endpoint} ({reason}); log in with hf auth login or HF_TOKEN, and "
        f"send what is there with hf upload {name} {folder}"
    )
