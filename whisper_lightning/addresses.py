"""Addresses in what users type and in what is shown: what is one, and no key of one is ever written down."""

from __future__ import annotations

import re

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
"""Beginning of a URL or of a command (`pipe:`); one letter and a colon is a drive of Windows."""
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
        """Return scheme and place, without a name and password before them."""
        scheme, place = match["scheme"], match["place"]
        user, _, rest = place.rpartition("@")
        container = scheme.lower() in CONTAINERS and ":" not in user
        # A password may hold a slash, and so may a path hold an "@": only the first has a colon before its first slash.
        has_user = "@" in place.split("/")[0] or ":" in user.split("/")[0]
        return f"{scheme}://{rest if has_user and not container else place}"

    return QUERY.sub("", ADDRESS.sub(without_user, text)) if "://" in text else text
