"""The command line of a run, with its log, exit code and last line."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import TYPE_CHECKING

from shardpress.base.errors import ShardpressError, VerificationFailed, system_failures
from shardpress.base.progress import activity
from shardpress.base.runlog import RunLog, Terminal
from shardpress.base.signals import Stopped, stoppable
from shardpress.settings.config import Config
from shardpress.settings.flags import parse
from shardpress.settings.printed import summary_line

if TYPE_CHECKING:
    from shardpress.output.disk import Disk
    from shardpress.run.outcome import Outcome

log = logging.getLogger(__name__)

_AGAIN = "Run the same command again to resume; finished results are kept."
_FIX = "Fix the problem above, then run the same command again to resume; finished results are kept."
_NOT_STARTED = "Nothing was started."
_START = "Fix the problem above, then run the command again."
# Advice by exit code. After a failure of the system or the storage, the same command can succeed.
_ADVICE = {
    os.EX_OSERR: _AGAIN,
    os.EX_IOERR: _AGAIN,
    VerificationFailed.exit_code: _AGAIN,
    os.EX_TEMPFAIL: "The line above says what to wait for.",
}


def main(
    description: str, argv: Sequence[str] | None = None, disk: Disk | None = None, program: str = "extract.py"
) -> int:
    """Run the pipeline with the settings of a command line, and return the exit code.

    If a signal stops the run, the code is 128 plus the number of the signal. `description` is the first part of the
    ``--help`` page, and `argv` the arguments without the `program`. The `disk` makes all changes to the file system.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()  # before anything is logged or any file is opened
    logging.basicConfig(handlers=[Terminal()])
    logging.raiseExceptions = False  # a run continues if its log can no longer be written
    # Python searches for unused cycles of objects after this number of new ones; 700 takes a third of the time of a
    # repeated run over many files, which creates many objects and few cycles.
    gc.set_threshold(200_000)
    run_log = RunLog()
    logging.getLogger().addHandler(run_log)
    try:
        with stoppable():  # includes the last line, so that a second signal ends the process without a traceback
            return _main(description, [program, *arguments], disk, run_log)
    finally:
        logging.getLogger().removeHandler(run_log)
        run_log.close()
        _empty_streams()


def _main(description: str, command: Sequence[str], disk: Disk | None, run_log: RunLog) -> int:
    try:
        config = parse(command[1:], os.environ, description)
        _set_level(config)
        with system_failures():
            outcome = _run(config, command, disk, run_log)
    except ShardpressError as error:
        return _report_failure(error, run_log)
    except KeyboardInterrupt as stopped:
        log.error("%s; no incomplete files remain", stopped or "stopped")  # a KeyboardInterrupt of Python has no text
        _last_line(stopped, _AGAIN)
        number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
        return 128 + number
    except Exception as error:
        log.critical("internal error of shardpress; please report it with this traceback", exc_info=True)
        _last_line(error, _AGAIN)
        return ShardpressError.exit_code
    run_log.write(str(outcome))
    with suppress(OSError):  # standard output may be closed
        print(outcome, flush=True)
    return 0


def _set_level(config: Config) -> None:
    level = logging.INFO
    if config.results.quiet:
        level = logging.WARNING
    elif config.results.verbose:
        level = logging.DEBUG
    for name in ("shardpress", "shardpress_kernels"):  # users do not need the details that Theano and Dask log
        logging.getLogger(name).setLevel(level)


def _report_failure(error: ShardpressError, run_log: RunLog) -> int:
    """Log an error, and return its exit code."""
    log.error("%s: %s", type(error).__name__, error)
    if error.details:
        run_log.write(error.details)
    if error.exit_code not in (os.EX_USAGE, os.EX_CONFIG):  # these occur before any work, so one line is enough
        _last_line(error, _ADVICE.get(error.exit_code, _FIX))
    return error.exit_code


def _run(config: Config, command: Sequence[str], disk: Disk | None, run_log: RunLog) -> Outcome:
    from shardpress.hdf5.child.ask import start_early

    start_early()
    # Log this before slow imports, so that the user immediately sees that the run has started, and its settings.
    others = "are those of the finished run" if config.results.append else "have their defaults (--verbose lists them)"
    log.info("shardpress %s: %s; other settings %s", version("shardpress"), summary_line(config), others)
    with activity("start: loading libraries", "a second"):
        from shardpress.run.engine import run

        if config.cluster.has_workers:
            import dask

            # Ignore the user's Dask configuration files and environment variables, which could change how workers run.
            dask.config.refresh(paths=[], env={})

    return run(config, command, disk, run_log.start)


def _open_streams() -> None:
    """Open missing standard streams.

    Otherwise files that are opened later would get the descriptors of these streams, and output would go into them.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _last_line(error: BaseException, advice: str) -> None:
    """Log the progress of the run, followed by what the user can do."""
    with suppress(OSError):
        sys.stdout.flush()  # so that the output of libraries precedes the last line
    notes = getattr(error, "__notes__", [])
    for note in notes:
        log.error("%s %s", note, advice)
    if not notes:
        log.error("%s %s", _NOT_STARTED, _START if advice == _FIX else advice)


def _empty_streams() -> None:
    """Discard output that cannot be written. Otherwise Python would try again at exit, and exit with code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, stream.fileno())
            os.close(nothing)
