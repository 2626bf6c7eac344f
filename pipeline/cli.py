"""Arguments in, exit code out."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from tqdm.contrib.logging import logging_redirect_tqdm

from pipeline.config import Config, parse
from pipeline.errors import ShardpressError
from pipeline.run import run
from pipeline.signals import Stopped, stoppable

__all__ = ["main"]

log = logging.getLogger(__name__)


def main(description: str, argv: Sequence[str] | None = None) -> int:
    """Run the pipeline as the command line asks.

    Parameters
    ----------
    description : str
        The head of the ``--help`` page.
    argv : sequence of str, optional
        Flags; those of the process when left out.

    Returns
    -------
    int
        0, or the exit code of what went wrong, after one line that says it; 128 and its number for a signal.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    try:
        config = parse(arguments, os.environ, description)
        _set_levels(config)
        with stoppable(), logging_redirect_tqdm():
            summary = run(config, ["extract.py", *arguments])
    except ShardpressError as error:
        log.error("%s: %s", type(error).__name__, error)
        return error.exit_code
    except KeyboardInterrupt as stopped:
        log.error("%s: no half-written file is left behind; the same command starts again", stopped or "stopped")
        return 128 + (stopped.number if isinstance(stopped, Stopped) else signal.SIGINT)
    except Exception:
        log.critical("a fault of shardpress itself; please report it with these lines", exc_info=True)
        return ShardpressError.exit_code
    print(summary)
    return 0


def _set_levels(config: Config) -> None:
    level = logging.WARNING if config.quiet else logging.DEBUG if config.verbose else logging.INFO
    for name in ("pipeline", "kernels"):
        logging.getLogger(name).setLevel(level)
