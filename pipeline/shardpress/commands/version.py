"""`shardpress version`: print the versions of shardpress and of the packages that results depend on."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

from shardpress.commands.parsing import add_json_flag, print_json

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Print the versions of shardpress and of the packages that results depend on.

    shardpress version
    shardpress version --json
"""
_PACKAGES = ("shardpress", "numpy", "Theano", "pygpu", "dask", "h5py", "scikit-learn")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    """Print versions."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    if options.json:
        print_json(versions)
    else:
        for name, number in versions.items():
            print(f"{name:14} {number or 'not installed'}")
    return 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
