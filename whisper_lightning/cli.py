"""One door: every command, one line for each mistake, one exit code for each end."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from importlib import import_module

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from whisper_lightning.commands.options import OTHER_COMMANDS, short_help
from whisper_lightning.data.workers import death_of_a_worker, end_workers
from whisper_lightning.errors import Interrupted, UserError, is_full_disk
from whisper_lightning.stop import EXIT_CODES, give_back, stop_in_order, take_over
from whisper_lightning.terminal import log_to_terminal, print_anything, say

logger = logging.getLogger(__name__)

ROOM = (
    "lower --data.max_batch_seconds or --data.batch_size, or --data.eval_batch_size where it was a validation; "
    "`whisper-lightning plan` with the options of fit says what it needs. What was saved before is whole"
)
"""What helps where there is no memory."""


def main(args: list[str] | None = None) -> int:
    """Run the command line; the one door for the shell, tests and notebooks.

    Returns:
        0; 1 where something is to be looked at (a file that was skipped, an export that differs); 2 after a user's
        mistake or with a full disk, shown as one line; 75 when a signal stopped the run where it can be continued, or
        its reader processes were killed, 130 when Ctrl-C did.
    """
    words = sys.argv[1:] if args is None else args
    print_anything()
    log_to_terminal()
    for noisy in ("httpx", "transformers", "lightning.pytorch.utilities.rank_zero", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for known in (".*does not have many workers.*", ".*LightningCLI's args parameter.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=known)
    threading.excepthook = _end_of_thread
    if not words or words[0] in ("-h", "--help"):
        say(short_help())
        return 0
    handlers = take_over(stop_in_order)
    try:
        if words[0] in OTHER_COMMANDS:
            return int(import_module(f"whisper_lightning.commands.{words[0]}").run(words[1:]))
        return int(import_module("whisper_lightning.commands.training").run(args))
    except Interrupted as stop:
        end_workers()
        logger.info("%s", stop)
        return stop.exit_code
    except KeyboardInterrupt:
        return EXIT_CODES["SIGINT"]
    except SystemExit as end:  # Lightning makes one of Ctrl-C
        if isinstance(end.__context__, KeyboardInterrupt):
            return EXIT_CODES["SIGINT"]
        raise
    except Exception as error:
        explained = _explain(error)
        if explained is None:
            raise
        say(explained[0], error=True)
        return explained[1]
    finally:
        give_back(handlers)


def _end_of_thread(ended: threading.ExceptHookArgs) -> None:
    """Show one line where a thread, such as TensorBoard's, cannot write its file; the run finds out by itself."""
    if isinstance(ended.exc_value, OSError):
        logger.warning("%s", ended.exc_value)
    else:
        threading.__excepthook__(ended)


def _explain(error: Exception) -> tuple[str, int] | None:
    """Return the line and the exit code for an error whose reason lies outside of the program; None for another."""
    if isinstance(error, UserError | MisconfigurationException):
        return f"error: {error}", 2
    if is_full_disk(error):
        remedy = "what was saved before is whole. Make room, then continue with --ckpt_path last"
        return f"error: the disk is full ({error}); {remedy}", 2
    if _is_out_of_memory(error):
        return f"error: there is no memory for this ({str(error).splitlines()[0]}); {ROOM}", 2
    if (death := death_of_a_worker(error)) is not None:
        return f"error: {death}", death.exit_code if isinstance(death, Interrupted) else 2
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Say whether torch found no memory, on a GPU or beside it; torch is not imported for that."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: can't allocate memory" in str(error)
