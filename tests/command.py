"""The commands as a user types them, through the one door."""

from whisper_lightning.cli import main


def shards(arguments: list[str]) -> int:
    return main(["shards", *arguments])


def evaluate(arguments: list[str]) -> int:
    return main(["evaluate", *arguments])


def export(arguments: list[str]) -> int:
    return main(["export", *arguments])


def transcribe(arguments: list[str]) -> int:
    return main(["transcribe", *arguments])
