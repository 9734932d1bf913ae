"""`python -m whisper_lightning`."""

import sys

from whisper_lightning.cli import main

if __name__ == "__main__":
    sys.exit(main())
