"""`python -m whisper_lightning`."""

import sys

if __name__ == "__main__":
    # Not above: spawned loader workers import this file, and need nothing of the command line.
    from whisper_lightning.stop import stop_at_once, take_over

    take_over(stop_at_once)
    from whisper_lightning.cli import main

    sys.exit(main())
