"""`shardpress completion`: print a script that completes commands, flags and values in a shell."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from shardpress.commandline import Parser
from shardpress.commands.table import COMMANDS, load_command

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Print a script that completes commands, flags and their values in a shell.

    shardpress completion bash > ~/.local/share/bash-completion/completions/shardpress
    shardpress completion zsh > "${fpath[1]}/_shardpress"
    shardpress completion fish > ~/.config/fish/completions/shardpress.fish

The script does not start Python when you press TAB. Create it again after an update of shardpress.
"""
_SHELLS = ("bash", "zsh", "fish")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("shell", choices=_SHELLS, help="Shell to write the script for.")


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    parser = _parser_of_all(shtab.FILE, shtab.DIRECTORY)
    sys.stdout.write(shtab.complete(parser, options.shell))
    return 0


def _parser_of_all(file: Any, folder: Any) -> argparse.ArgumentParser:
    """Return a single parser with the arguments of all commands.

    Parameters
    ----------
    file, folder : dict
        Code that completes files or directories, by the name of the shell.
    """
    parser = argparse.ArgumentParser("shardpress")
    commands = parser.add_subparsers(parser_class=Parser)
    for name, command in COMMANDS.items():
        arguments = commands.add_parser(name, help=command.summary)
        load_command(name).configure(arguments)
        for action in arguments._actions:
            _complete_values(action, file, folder)
    return parser


def _complete_values(action: Any, file: Any, folder: Any) -> None:
    """Define how the value of an argument is completed."""
    metavar = str(action.metavar or "")
    is_positional = not action.option_strings
    if metavar.startswith("{"):
        action.choices = metavar.strip("{}").split(",")
    elif metavar in ("DIR", "DIRECTORY"):
        action.complete = folder
    elif metavar in ("FILE", "PATH") or (is_positional and not action.choices):
        action.complete = file
