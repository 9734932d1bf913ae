"""What every entry point does first: printing that no console can break, and `~` in what was typed."""

from __future__ import annotations

import argparse
import io
import re
import sys
from pathlib import Path
from typing import Any

HOME = re.compile(r"~[^/\\]*([/\\]|$)")
"""How a path into somebody's home begins. A shell replaces it in `--out ~/x`, but not in `--out=~/x`, nor in YAML."""


def read_command_line(parser: argparse.ArgumentParser, args: list[str] | None = None) -> argparse.Namespace:
    """Parse a tool's command line."""
    print_anything()
    options: argparse.Namespace = expand_home(parser.parse_args(args))
    return options


def print_anything() -> None:
    """Let characters that a console or a log file's code page lacks be written as an escape, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook, which takes all
            stream.reconfigure(errors="backslashreplace")


def expand_home(value: Any) -> Any:
    """Replace `~` and `~name` at the beginning of every string and path in a tree of options, in place.

    Args:
        value: A text, a path, or a namespace, dictionary or list of them. Names of users that do not exist stay.

    Returns:
        The same, expanded.
    """
    if isinstance(value, str | Path):
        if not HOME.match(str(value)):
            return value
        try:
            return type(value)(Path(value).expanduser())
        except RuntimeError:  # it is no user's name
            return value
    if isinstance(value, list):
        value[:] = [expand_home(each) for each in value]
    elif isinstance(value, dict | argparse.Namespace):
        items = value if isinstance(value, dict) else vars(value)
        items.update({name: expand_home(each) for name, each in items.items()})
    return value
