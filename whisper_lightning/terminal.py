"""What is typed and what is shown: options of a command, printing that no console can break, `~` in paths."""

from __future__ import annotations

import argparse
import io
import logging
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from whisper_lightning.addresses import without_keys
from whisper_lightning.errors import UserError

HOME = re.compile(r"~[^/\\]*([/\\]|$)")
"""How a path into somebody's home begins. A shell replaces it in `--out ~/x`, but not in `--out=~/x`, nor in YAML."""


class CommandLine(argparse.ArgumentParser):
    """The options of a command that is not Lightning's.

    Args:
        command: Its name.
        description: What `--help` begins with.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"whisper-lightning {command}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise a user's mistake, so that it is shown as every other one."""
        raise UserError(f"{message}; {self.prog} --help lists what it takes")


def read_command_line(parser: argparse.ArgumentParser, args: list[str] | None = None) -> argparse.Namespace:
    """Parse the words after a command, or after a tool's name; `~` is the user's folder."""
    print_anything()
    options: argparse.Namespace = expand_home(parser.parse_args(args))
    return options


def print_anything() -> None:
    """Let characters that a console or a log file's code page lacks be written as an escape, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook, which takes all
            stream.reconfigure(errors="backslashreplace")


def show(text: str) -> str:
    r"""Make untrusted text fit for a terminal: what would move its cursor or turn its lines around is an escape.

    Control characters (ESC among them) and marks of direction become `\x1b`, `\u202e`; line ends and tabs stay.
    """
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t" else c
        for c in text
    )


def say(text: object, *, error: bool = False) -> None:
    """Print what may hold untrusted text, such as a file's name."""
    (sys.stderr if error else sys.stdout).write(f"{show(str(text))}\n")


class ShownFormatter(logging.Formatter):
    """Writes log lines as `show` makes them, and addresses without keys."""

    def format(self, record: logging.LogRecord) -> str:
        """Format, then show."""
        return show(without_keys(super().format(record)))


def log_to_terminal() -> None:
    """Send log lines of every program part to the terminal, unless a handler is there already."""
    handler = logging.StreamHandler()
    handler.setFormatter(ShownFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def expand_home(options: Any) -> Any:
    """Replace `~` and `~name` at the beginning of every text and path in a tree of options, in place.

    Names of users that do not exist stay.
    """

    def expanded(value: str | Path) -> str | Path:
        try:
            return type(value)(Path(value).expanduser()) if HOME.match(str(value)) else value
        except RuntimeError:  # it is no user's name
            return value

    return change_texts(options, expanded)


def forget_keys(options: Any) -> None:
    """Leave out the keys of every address in a tree of options, in place."""
    change_texts(options, lambda value: without_keys(value) if isinstance(value, str) else value)


def change_texts(value: Any, change: Callable[[str | Path], str | Path]) -> Any:
    """Apply a function to every text and path in a namespace, dictionary or list, in place; return the result."""
    if isinstance(value, str | Path):
        return change(value)
    if isinstance(value, list):
        value[:] = [change_texts(each, change) for each in value]
    elif isinstance(value, dict | argparse.Namespace):
        items = value if isinstance(value, dict) else vars(value)
        items.update({name: change_texts(each, change) for name, each in items.items()})
    return value
