"""The commands of `shardpress` and how one begins: a command loads what it needs, and the table nothing at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import NoReturn

from pipeline.doctor.packages import missing_proc
from pipeline.errors import ShardpressError, SystemLimit, UsageError, shown
from pipeline.signals import leave

__all__ = ["COMMANDS", "Command", "main", "module_of", "shardpress"]


@dataclass(frozen=True)
class Command:
    """One line of the table.

    Attributes
    ----------
    group : str
        When it is used; the page of all commands is ordered by it.
    summary : str
        What it does, in half a line.
    """

    group: str
    summary: str


# `main(arguments)` of the file of that name in this folder, or in that of its group, returns the exit code.
COMMANDS = {
    "run": Command("each night", "scan shards, train, and encode every row"),
    "inspect": Command("before", "what is in HDF5 files, and what would be made of it"),
    "plan": Command("before", "what a run would take and stumble over, without one"),
    "report": Command("after", "the morning's page, as a file, a text or numbers"),
    "classify": Command("after", "a classifier on the features, beside raw columns and principal components"),
    "compare": Command("after", "whether two runs' features mean the same"),
    "verify": Command("after", "check files and features against digests and input rows"),
    "export": Command("after", "write the encoder for ONNX runtimes"),
    "doctor": Command("set up", "whether a run will do on this machine, and what to mend if not"),
    "setup-gpu": Command("set up", "pygpu, and the CUDA libraries that the driver takes"),
    "completion": Command("set up", "a script that completes commands and flags in bash, zsh or fish"),
    "version": Command("set up", "versions of shardpress and of what its results depend on"),
}
_FOLDERS = {"set up": "set_up."}
_EXAMPLES = (
    "  shardpress doctor                                   will a run do on this machine?",
    "  shardpress run --input shards/ --output features    the whole night; typed again, it goes on where it was",
)


def main(arguments: Sequence[str]) -> int:
    """Run the command that the first argument names, with the others.

    Returns
    -------
    int
        Its exit code; that of an error after a line that says it.
    """
    name = arguments[0] if arguments else "--help"
    try:
        if name in ("--help", "-h"):
            print(_page())
            return 0
        name = _known(name)
        if COMMANDS[name].group != "set up" and (problem := missing_proc()):
            raise SystemLimit(problem)
        return int(import_module(module_of(name)).main(arguments[1:]))
    except ShardpressError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def module_of(name: str) -> str:
    """Where a command lies."""
    return f"pipeline.commands.{_FOLDERS.get(COMMANDS[name].group, '')}{name.replace('-', '_')}"


def shardpress() -> NoReturn:
    """Begin where the shell does."""
    leave(main(sys.argv[1:]))


def _known(name: str) -> str:
    name = "version" if name == "--version" else name
    if name in COMMANDS:
        return name
    near = get_close_matches(name, COMMANDS, 1)
    meant = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"shardpress has no command {shown(name)}.{meant} See shardpress --help.")


def _page() -> str:
    lines = ["HDF5 shards in, compact autoencoder features out.", "", *_EXAMPLES]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += ["", f"{group}:"]
        lines += [f"  {name:11} {each.summary}" for name, each in COMMANDS.items() if each.group == group]
    return "\n".join([*lines, "", "shardpress COMMAND --help says more of each."])
