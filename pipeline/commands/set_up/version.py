"""`shardpress version`: what results depend on, for people and for reports of faults."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from pipeline.commands.parsing import Parser, printed_json

__all__ = ["main"]

_EXAMPLES = """Versions of shardpress and of what its results depend on.

    shardpress version
    shardpress version --json
"""
_PACKAGES = ("shardpress", "numpy", "Theano", "pygpu", "dask", "h5py", "scikit-learn")


def main(arguments: Sequence[str]) -> int:
    """Print versions."""
    parser = Parser("version", _EXAMPLES)
    parser.add_argument("--json", action="store_true", help="as JSON")
    options = parser.parse_args(arguments)
    found = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    if options.json:
        printed_json(found)
    else:
        for name, number in found.items():
            print(f"{name:14} {number or 'not installed'}")
    return 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
