"""The exceptions that end a run with one line instead of a traceback, and what no line may show."""

from __future__ import annotations

import errno
import re

FULL_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
FULL_DISK_WORDS = ("no space left", "file too large", "disk quota", *(f"os error {number}" for number in FULL_DISK))


ADDRESS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<place>[^\s?#'\"]*)(?:[?#][^\s'\"]*[^\s'\",;:.)])?", re.IGNORECASE
)
QUERY = re.compile(r"[?#][^\s'\"]*=[^\s'\"]*")
"""Also behind a blank, which an address should not have and may."""
CONTAINERS = ("az", "abfs", "abfss")
"""Here the name of a container stands where others have a user's."""


def without_keys(text: str) -> str:
    """Make the addresses in a text fit to be shown and stored: without their query, name and password.

    Signed addresses have their key in the query (`?token=`, `X-Amz-Signature`), S3's may stand before the `@`.
    """

    def without_user(match: re.Match[str]) -> str:
        """Give scheme and place, without a name and password before them."""
        scheme, place = match["scheme"], match["place"]
        user, _, rest = place.rpartition("@")
        container = scheme.lower() in CONTAINERS and ":" not in user
        # A password may hold a slash, and so may a path hold an "@": only the first has a colon before its first slash.
        has_user = "@" in place.split("/")[0] or ":" in user.split("/")[0]
        return f"{scheme}://{rest if has_user and not container else place}"

    return QUERY.sub("", ADDRESS.sub(without_user, text)) if "://" in text else text


class UserError(ValueError):
    """A mistake of the user's: one line with the offending value and the remedy, shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(without_keys(message))


class Interrupted(BaseException):
    """A signal asked the run to stop, and it did at a point from which it can be continued.

    As with `KeyboardInterrupt`, nothing that deals with errors shall take it for one.

    Attributes:
        exit_code: What the process ends with: 75 (try again later) for SIGTERM and SIGUSR1, 130 for Ctrl-C.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def is_full_disk(error: BaseException | None) -> bool:
    """Say whether an error, or one that it came from, means that a file could not grow.

    torch and safetensors wrap the operating system's error into their own; then only its words are left.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            return True
        if any(words in str(error).lower() for words in FULL_DISK_WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False
