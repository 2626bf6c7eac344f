"""Arguments in, exit code out."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from pipeline.errors import ShardpressError, VerificationFailed, system_failures
from pipeline.runlog import RunLog, Terminal
from pipeline.settings.config import Config
from pipeline.settings.flags import parse
from pipeline.settings.printed import given
from pipeline.signals import Stopped, stoppable

if TYPE_CHECKING:
    from pipeline.output.disk import Disk
    from pipeline.run.finish import Summary

__all__ = ["main"]

log = logging.getLogger(__name__)

_AGAIN = "Type the same command again to go on; what was finished stays."
_MEND = "Mend what the line above says, then type the same command again: what was finished stays."
# By exit code: a failure of the system or of the storage has nothing to do with what was asked for.
_ADVICE = {
    os.EX_OSERR: _AGAIN,
    os.EX_IOERR: _AGAIN,
    VerificationFailed.exit_code: _AGAIN,
    os.EX_TEMPFAIL: "The line above says what there is to wait for.",
}


def main(
    description: str, argv: Sequence[str] | None = None, disk: Disk | None = None, program: str = "extract.py"
) -> int:
    """Run the pipeline as the command line asks.

    Parameters
    ----------
    description : str
        The head of the ``--help`` page.
    argv : sequence of str, optional
        Flags; those of the process when left out.
    disk : Disk, optional
        What makes every change to the file system.
    program : str
        What was typed before the flags, for the outputs' attributes.

    Returns
    -------
    int
        0, or the exit code of what went wrong, after a line that says it and one that says how far the run came; 128
        and its number for a signal.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()  # before anything is logged, or opened
    logging.basicConfig(handlers=[Terminal()])
    logging.raiseExceptions = False  # a log that nobody reads any more is no reason to stop
    run_log = RunLog()
    logging.getLogger().addHandler(run_log)
    try:
        with stoppable():  # to the last line: a second signal is to end the process at once, not with a traceback
            return _main(description, [program, *arguments], disk, run_log)
    finally:
        logging.getLogger().removeHandler(run_log)
        run_log.close()
        _empty_streams()


def _main(description: str, command: Sequence[str], disk: Disk | None, run_log: RunLog) -> int:
    try:
        config = parse(command[1:], os.environ, description)
        level = logging.WARNING if config.results.quiet else logging.DEBUG if config.results.verbose else logging.INFO
        for name in ("pipeline", "kernels"):  # not of Theano and Dask, whose details say nothing to a user
            logging.getLogger(name).setLevel(level)
        with system_failures():
            summary = _run(config, command, disk, run_log)
    except ShardpressError as error:
        log.error("%s: %s", type(error).__name__, error)
        if error.details:
            run_log.say(error.details)
        if error.exit_code not in (os.EX_USAGE, os.EX_CONFIG):  # nothing has begun then, and one line says it all
            _last_line(error, _ADVICE.get(error.exit_code, _MEND))
        return error.exit_code
    except KeyboardInterrupt as stopped:
        log.error("%s: no half-written file is left behind", stopped or "stopped")  # Python's own has no words
        _last_line(stopped, _AGAIN)
        return 128 + (stopped.number if isinstance(stopped, Stopped) else signal.SIGINT)
    except Exception as error:
        log.critical("a fault of shardpress itself; please report it with these lines", exc_info=True)
        _last_line(error, _AGAIN)
        return ShardpressError.exit_code
    run_log.say(str(summary))
    with suppress(OSError):  # whoever would read it has gone
        print(summary, flush=True)
    return 0


def _run(config: Config, command: Sequence[str], disk: Disk | None, run_log: RunLog) -> Summary:
    # Before what takes its time to load: whoever has typed the command sees that it has begun, and with what.
    log.info("shardpress %s: %s; the rest by default (--verbose lists it)", version("shardpress"), given(config))
    import dask

    from pipeline.run.stages import run

    # Otherwise any variable DASK_... could change what Dask does.
    dask.config.refresh(paths=[], env={})
    return run(config, command, disk, run_log.start)


def _open_streams() -> None:
    """Open what the process was started without: the next files would take these numbers and get what is said there."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _last_line(error: BaseException, advice: str) -> None:
    """How far the run came, and what to do."""
    with suppress(OSError):
        sys.stdout.flush()  # what libraries said comes before the last line
    for note in getattr(error, "__notes__", ["Nothing was started."]):
        log.error("%s %s", note, advice)


def _empty_streams() -> None:
    """Let go of what nobody takes: Python would try once more when it ends, and turn a good exit code into 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
