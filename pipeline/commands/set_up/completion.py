"""`shardpress completion`: a script that completes commands, flags and values in a shell, without any Python."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from pipeline.commands.parsing import Parser
from pipeline.commands.table import COMMANDS, module_of

__all__ = ["main"]

_EXAMPLES = """Write a script for a shell, which completes commands, flags and their values.

    shardpress completion bash > ~/.local/share/bash-completion/completions/shardpress
    shardpress completion zsh > "${fpath[1]}/_shardpress"
    shardpress completion fish > ~/.config/fish/completions/shardpress.fish

The script starts no Python at a TAB. Write it again after an update.
"""
_SHELLS = ("bash", "zsh", "fish")
# Commands whose flags are the settings, and what each of them reads beside these.
_OF_SETTINGS = {"run": ("--dry-run", "what it would take, without a run"), "plan": ("--json", "as JSON")}


class _Taken(BaseException):
    """Carries a parser away from a command that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def main(arguments: Sequence[str]) -> int:
    """Write the script on standard output."""
    parser = Parser("completion", _EXAMPLES)
    parser.add_argument("shell", choices=_SHELLS)
    shell = parser.parse_args(arguments).shell
    import shtab

    sys.stdout.write(shtab.complete(_of_all(shtab.FILE, shtab.DIRECTORY), shell))
    return 0


def _of_all(file: object, folder: object) -> argparse.ArgumentParser:
    """One parser that knows the flags of all commands, and which of their values are files, folders or one of a few."""
    parser = argparse.ArgumentParser("shardpress")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        flags = commands.add_parser(name, help=command.summary, parents=[_parser_of(name)], add_help=False)
        for action in flags._actions:
            metavar = str(action.metavar or "")
            if metavar.startswith("{"):
                action.choices = metavar.strip("{}").split(",")
            elif metavar in ("DIR", "DIRECTORY"):
                action.complete = folder  # type: ignore[attr-defined]
            elif metavar in ("FILE", "PATH") or not (action.option_strings or action.choices):
                action.complete = file  # type: ignore[attr-defined]
    return parser


def _parser_of(name: str) -> argparse.ArgumentParser:
    """What a command reads its arguments with."""
    if name in _OF_SETTINGS:
        from pipeline.settings.flags import parser_of_settings

        parser, (flag, help) = parser_of_settings(""), _OF_SETTINGS[name]
        parser.add_argument(flag, action="store_true", help=help)
        return parser
    with _taking():
        try:
            import_module(module_of(name)).main([])
        except _Taken as taken:
            return taken.parser
    raise AssertionError(f"{name} reads no arguments")


@contextmanager
def _taking() -> Iterator[None]:
    """Within the context no parser parses anything: it is carried away."""

    def take(parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        raise _Taken(parser)

    read: Callable[..., object] = argparse.ArgumentParser.parse_known_args
    argparse.ArgumentParser.parse_known_args = take  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        argparse.ArgumentParser.parse_known_args = read  # type: ignore[method-assign, assignment]
