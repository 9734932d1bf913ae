"""`python -m whisper_lightning`."""

import sys

if __name__ == "__main__":
    # Not above: spawned loader workers import this file, and need nothing of the command line.
    from whisper_lightning.cli import main

    sys.exit(main())
