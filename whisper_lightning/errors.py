"""The exceptions that end a run with one line instead of a traceback."""

from __future__ import annotations

import errno

from whisper_lightning.addresses import without_keys

FULL_DISK = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
FULL_DISK_WORDS = ("no space left", "file too large", "disk quota", *(f"os error {number}" for number in FULL_DISK))


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
