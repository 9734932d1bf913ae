"""Options and configurations: where shipped ones are, what an untrusted one may say, one line for each mistake."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from whisper_lightning.errors import UserError
from whisper_lightning.terminal import expand_home

CONFIG_FOLDERS = [Path(__file__).parents[2] / "configs", Path(__file__).parents[1] / "configs"]
"""Where shipped configurations are: in a checkout, and in an installed package."""
MOST_NODES = 10_000
"""Values in a configuration, aliases written out; a page of YAML can stand for more than any memory holds."""
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list such as [a, b]",
    "dict": "a table such as {a: 1}",
    "NoneType": "null",
}
LIGHTNINGS_COMMANDS = ("fit", "validate", "test", "predict")
OTHER_COMMANDS = ("plan", "shards", "evaluate", "export", "transcribe")
"""Each is the module of that name beside this one."""
HELP = """usage: whisper-lightning COMMAND [--config NAME.yaml] [--OPTION VALUE ...]    (or python -m whisper_lightning)

  fit         train, and measure before and after      (fit --config quickstart.yaml: shipped clips, a minute)
  plan        what a run will need, what a card holds  (plan --config rtx3060.yaml --card 12)
  test        the word error rate of a model           (--model.checkpoint FOLDER --data.val test.csv)
  predict     transcripts of clips without sentences   (--model.checkpoint FOLDER --data.predict new.csv)
  validate    as test, on data.val
  shards      prepare the data apart from training     (shards train.csv shards/train)
  evaluate    compare models; a report to look at      (evaluate runs/NAME --data test.csv --report report)
  export      a model for other programs, checked      (export runs/NAME exported --formats hf,ct2)
  transcribe  recordings of any length, subtitles      (transcribe runs/NAME recording.mp3 --format srt)
shipped configurations: {configurations}
every option of a command: whisper-lightning COMMAND --help
"""


def short_help() -> str:
    """Return what the command line says when nothing was asked of it."""
    return HELP.format(configurations=", ".join(_shipped()))


def find_shipped(name: str) -> Path:
    """Return the path of a configuration or of a file beside one; the working directory wins over what is shipped."""
    for folder in [Path(), *CONFIG_FOLDERS]:
        if (folder / name).exists():
            return folder / name
    return Path(name)


def _shipped() -> list[str]:
    return sorted({path.name for folder in CONFIG_FOLDERS for path in folder.glob("*.yaml")} - {"base.yaml"})


class NamedConfig(ActionConfigFile):
    """`--config rtx3060.yaml` from any working directory."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        """Replace the name by the path of a shipped file, where the working directory has none."""
        path = find_shipped(expand_home(str(values)))
        if not path.is_file():
            remedy = suggestion(str(values), _shipped()) or f"; shipped are {', '.join(_shipped())}"
            raise UserError(f"--config: there is no file {values!r}{remedy}")
        read_yaml(path)
        super().__call__(parser, cfg, str(path.resolve()), option_string)  # type: ignore[no-untyped-call]


class Parser(LightningArgumentParser):
    """Raises a user's mistakes, so that `main` can show each as one line; takes no key that is cut off for another."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Raise `UserError` instead of printing the usage and exiting."""
        raise UserError(explain(" ".join(str(message).split()), list(self._options()))) from ex

    def _options(self) -> Iterator[str]:
        """Return the keys of all options, those of the commands too."""
        for action in self._actions:
            choices: Any = action.choices
            if isinstance(choices, dict):  # the commands, each with a parser of its own
                for parser in choices.values():
                    yield from parser._options()
            elif action.dest not in ("help", "config", "print_config"):
                yield action.dest


def read_yaml(path: Path) -> Any:
    """Read a configuration's text, without making objects of it.

    Raises:
        UserError: It is not UTF-8, no YAML, or stands for more values than a configuration has.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"--config: {path} is not UTF-8 (byte {error.start + 1}); save it as UTF-8") from None
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"--config: {path} is no YAML that can be read ({' '.join(str(error).split())})") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"--config: {path} holds no options; it should say, for example, trainer: {{max_steps: 1000}}")
    if _num_nodes(root, {}) > MOST_NODES:
        raise UserError(f"--config: {path} stands for more than {MOST_NODES:,} values; its aliases multiply")
    return yaml.safe_load(text)


def _num_nodes(node: yaml.Node, known: dict[int, float]) -> float:
    """Count the values under a node as if each alias were written out; one that contains itself is infinite."""
    if id(node) not in known:
        known[id(node)] = float("inf")
        inner: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            inner = (each for pair in node.value for each in pair)
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_num_nodes(each, known) for each in inner)
    return known[id(node)]


def refuse_environment(commands: Iterable[str]) -> None:
    """Refuse options in the environment: they would have no effect, or one that nobody sees.

    Raises:
        UserError: A variable such as PL_FIT__TRAINER__MAX_STEPS is set.
    """
    for name in sorted(os.environ):
        command, _, key = name.removeprefix("PL_").partition("__")
        if name.startswith("PL_") and key and command.lower() in commands:
            option = key.lower().replace("__", ".")
            raise UserError(
                f"{name}: options are not read from the environment; give --{option} {os.environ[name]} on the command "
                "line, or put it into a configuration, and unset the variable"
            )


def settle_length(config: Namespace, arguments: Sequence[str] | None) -> None:
    """Let the strongest of command line, configurations and base.yaml decide whether a run is given in epochs or steps.

    base.yaml has a number of steps, so epochs alone would otherwise end with it. Who gives both gets both.
    """
    words = sys.argv[1:] if arguments is None else arguments
    typed = {word.split("=")[0].removeprefix("--trainer.") for word in words}
    files = [read_yaml(Path(str(path))).get("trainer") or {} for path in config.get("config") or []]
    trainer = config.trainer
    for given in (typed, *reversed(files)):
        steps, epochs = "max_steps" in given, "max_epochs" in given
        if steps and not epochs:
            trainer.max_epochs = -1
        elif epochs and not steps and trainer.max_epochs not in (None, -1):
            trainer.max_steps = -1
        if steps or epochs:
            return


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for a mistyped word, or nothing."""
    close = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def explain(message: str, options: Sequence[str]) -> str:
    """Turn what jsonargparse says into a line that names the option, the value and the remedy.

    Args:
        message: Of jsonargparse, on one line.
        options: Keys of the options that there are.
    """
    if found := re.match(r"unrecognized arguments: (.*)", message, re.IGNORECASE):
        word = found[1].split()[0]
        if not word.startswith("-"):
            return f"{word!r} is no option; options begin with --, such as --data.train train.csv"
        return _no_option(word.split("=")[0].lstrip("-"), options)
    if found := re.match(r"Subcommand '\w+' does not accept option '([^']*)'", message):
        return _no_option(found[1], options)
    if found := re.match(r"argument subcommand: invalid choice: '([^']*)'", message):
        commands = (*LIGHTNINGS_COMMANDS, *OTHER_COMMANDS)
        return f"{found[1]!r} is no command ({', '.join(commands)}){suggestion(found[1], commands)}"
    found = re.match(r'Parser key "([^"]+)": (.*?)(?:Given value type: .*)?(?:Got value|Given value): (.*)', message)
    return _wrong_value(found[1], found[3], found[2]) if found else message


def _no_option(key: str, options: Sequence[str]) -> str:
    """Name what comes closest: the whole key, or the key's last word in any group."""
    close = suggestion(key, options)
    last = key.rpartition(".")[2]
    if not close:
        same = [each for each in options if each.rpartition(".")[2] == last]
        close = f"; did you mean {same[0]}?" if same else "; fit --help lists the options"
    return f"--{key}: there is no such option{close.replace('mean ', 'mean --')}"


def _wrong_value(key: str, value: str, expected: str) -> str:
    """Say what would be right, from the types in jsonargparse's message."""
    choices = [c for each in re.findall(r"Literal\[(.*?)\]", expected) for c in re.findall(r"'?([\w.-]+)'?", each)]
    choices = list(dict.fromkeys(choices))
    types = dict.fromkeys(re.findall(r"<class '(\w+)'>", expected))
    kinds = [TYPES[name] for name in types if name in TYPES]
    if choices:
        return f"{key}: {value!r} is none of {', '.join(choices)}{suggestion(value, choices)}"
    reason = re.search(r"(Problem with given class_path .*?)(?: - |Given value|$)", expected)
    if reason:
        return f"{key}: {reason[1].strip()}"
    return f"{key}: {value!r} is not {' or '.join(kinds) or 'what it takes'}"
