"""`shardpress setup-theano`: install Theano, which pip alone cannot build in Python 3.12 and later."""

from __future__ import annotations

import argparse

from shardpress.commands.parsing import existing_directory

DESCRIPTION = """Install Theano 1.0.5, with which models are trained and applied, into this Python environment.

    shardpress setup-theano
    shardpress setup-theano --from DIR        without a network

In Python 3.12 and later, pip cannot build the archive of Theano. This command builds it, changes some of its files for
current versions of Python and NumPy, and installs nothing else. It uses pip with its settings, and checks the digest of
each downloaded file. Run it again after an update of shardpress; if nothing has to be done, it takes no time.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        type=existing_directory,
        help="Use the archive of Theano and the wheel of setuptools 80.9.0 in this directory, and no network.",
    )


def run(options: argparse.Namespace) -> int:
    """Install Theano, and print a line for each step."""
    from shardpress.setup.theano_installer import set_up

    for line in set_up(options.source):
        print(line, flush=True)
    return 0
