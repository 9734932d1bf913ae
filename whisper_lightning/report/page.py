"""The page: one file with everything in it, that opens from the disk."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from whisper_lightning.report.results import Results, as_json


def write_page(results: Results, path: Path) -> None:
    """Write index.html; it names the audio files where they are and embeds everything else.

    Args:
        results: What the report says.
        path: Where the page goes; audio is addressed relative to it, so that both can move together.
    """
    names = ["page"] if results.training is None else ["page", "curves"]
    template, style, script = _read("html", ["page"]), _read("css", names), _read("js", names)
    folder = path.parent.resolve()
    shown = as_json(results)
    for each in shown["utterances"]:
        each["url"] = _address(each.pop("path"), folder)
    # Nothing is loaded and nothing runs but this style and this script, whatever a transcript says.
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "media-src 'self' file:; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(
            f"Evaluation of {results.data.source}" if results.training is None else f"Run {results.training.name}"
        ),
        "style": style,
        "script": script,
        "results": _embed(shown),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
    path.write_text(page, encoding="utf-8", newline="\n")


def _read(kind: str, names: Sequence[str]) -> str:
    """Join files of one kind, such as scripts."""
    folder = files("whisper_lightning.report")
    return "\n".join((folder / f"{name}.{kind}").read_text(encoding="utf-8") for name in names)


def _address(path: str | None, folder: Path) -> str | None:
    """Return the URL of an audio file, relative to the page where one disk holds both."""
    if path is None:
        return None
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # another drive of Windows
        return Path(path).as_uri()
    return quote(relative.replace(os.sep, "/"))


def _digest(text: str) -> str:
    """Name a style or script by its content, for the page's security policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embed(shown: dict[str, Any]) -> str:
    """Return JSON that cannot end the script element that it stands in."""
    text = json.dumps(shown, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
