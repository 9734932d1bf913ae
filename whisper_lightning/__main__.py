"""`python -m whisper_lightning`, and the command `whisper-lightning`."""

import sys


def run() -> int:
    """Run the command line; while it is imported, a signal ends the process at once."""
    # Not above: spawned loader workers import this file, and need nothing of the command line.
    from whisper_lightning.stop import stop_at_once, take_over

    take_over(stop_at_once)
    from whisper_lightning.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(run())
