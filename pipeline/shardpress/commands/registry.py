"""The table of commands, and the functions that run them.

Each command is a module of this package with three public names. ``DESCRIPTION`` is the first part of the ``--help``
page, ``configure(parser)`` adds the arguments to a parser, and ``run(options)`` returns the exit code. Commands that
take the settings of a run have no ``configure``: `shardpress.settings.flags` parses their arguments together with
environment variables and a file. Their only option is ``arguments``.

Every command starts quickly, because its module is imported only when it runs, and ``run`` imports all other modules
that it needs.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn

from shardpress.base.commandline import Parser
from shardpress.base.errors import ShardpressError, SystemLimit, UsageError, printable
from shardpress.base.packages import missing_proc
from shardpress.base.signals import leave


@dataclass(frozen=True)
class _Command:
    """Entry of the table of commands."""

    group: str  # heading above the command in ``shardpress --help``
    summary: str  # verb phrase of at most half a line


_SET_UP = "set up"
COMMANDS = {
    "run": _Command("extract features", "scan shards, train an autoencoder, and encode every row"),
    "plan": _Command("before a run", "estimate time, memory and disk space, and list problems"),
    "inspect": _Command("before a run", "describe HDF5 files, and the rows that a run would read from them"),
    "report": _Command("after a run", "write its report as HTML, text or JSON"),
    "compare": _Command("after a run", "compare the features of two runs"),
    "verify": _Command("after a run", "check files against digests, and features against input rows"),
    "export": _Command("after a run", "write the encoder or the features for other programs"),
    "doctor": _Command(_SET_UP, "check this machine, and say what to fix"),
    "setup-theano": _Command(_SET_UP, "install Theano, which training and encoding need"),
    "setup-gpu": _Command(_SET_UP, "install pygpu and the CUDA libraries that fit the driver"),
}
_EXAMPLES = (
    "  shardpress doctor                                   check this machine",
    "  shardpress run --input shards/ --output features    extract features; run it again to resume",
)
_INTERRUPTED = 130


def shardpress() -> NoReturn:
    """Run the command that the arguments of this process name, and exit."""
    leave(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names, and return its exit code. Print its error, if any."""
    try:
        return _main(arguments)
    except ShardpressError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of standard output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return _INTERRUPTED


def _main(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("--help", "-h"):
        print(_page())
        return 0
    if name == "--version":
        print(f"shardpress {version('shardpress')}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, 1)
        advice = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"shardpress has no command {printable(name)}.{advice} See shardpress --help.")
    problem = missing_proc()
    if problem and COMMANDS[name].group != _SET_UP:
        raise SystemLimit(problem)
    command = import_module(f"shardpress.commands.{name.replace('-', '_')}")
    if not hasattr(command, "configure"):
        return int(command.run(Namespace(arguments=arguments[1:])))
    parser = Parser(f"shardpress {name}", command.DESCRIPTION)
    command.configure(parser)
    return int(command.run(parser.parse_args(arguments[1:])))


def _page() -> str:
    lines = ["Extract compact features from HDF5 shards with an autoencoder.", "", *_EXAMPLES]
    groups = dict.fromkeys(command.group for command in COMMANDS.values())
    for group in groups:
        lines += ["", f"{group}:"]
        lines += [f"  {name:12} {command.summary}" for name, command in COMMANDS.items() if command.group == group]
    lines += [
        "",
        "shardpress COMMAND --help describes a command and its options. shardpress --version prints the version.",
    ]
    return "\n".join(lines)
