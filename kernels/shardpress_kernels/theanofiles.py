"""Digests of the files of Theano 1.0.5 that this package adapts or relies on.

A file with other content can still work, but compute something else, or fail hours later. This module does not load
Theano, so every package can import it.
"""

from __future__ import annotations

import hashlib
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

# The first half of each SHA-256 digest.
_DIGESTS = {
    "configdefaults.py": "52da413d8544a391c2df491ebaae9c3e",
    "configparser.py": "1cb5e6c43ea37cfdcd772a07a64f14e2",
    "gof/c_code/lazylinker_c.c": "d2b5202a0aec56ee2b2a1f75a0965d97",
    "gof/cc.py": "ef973220715a515c2ecab0b88fa79058",
    "gof/cmodule.py": "6a519e5fdfa7f8375c79df3116927244",
    "gof/compilelock.py": "1157c82d0b70aea43e8f7d93433878a1",
    "gof/lazylinker_c.py": "c9d2b0339ceabd35d3a33bf3c10decdf",
    "gof/op.py": "e3f802b940320231ce11a8d72ebbbd79",
    "gof/opt.py": "fe69cb88784a365e51b9a993f27898f8",
    "gof/vm.py": "94c2ce9cc2ad728f685be5e880fc0a6a",
    "gpuarray/__init__.py": "09940f4e9983955ba5b59060bbfa724e",
    "gpuarray/elemwise.py": "3d07bdfb8d5c583682b4aa9c394bfdd3",
    "gpuarray/subtensor.py": "f449010a4e06dd4c0b938569a5785dda",
    "gpuarray/type.py": "808979b39e3e2c68b7506195edf90bf5",
    "misc/windows.py": "51ca64ddea04e830bd16cf51bd7b571d",
    "scalar/basic.py": "3ee5f230ebd4ebf903e4cf704fee5b11",
    "tensor/basic.py": "8792a2132757a70571061874e21d8be1",
    "tensor/blas.py": "2d3b13d35b27aee2a32ffa5baf7a4b55",
    "tensor/elemwise.py": "b0e44ed6b8ba130b016765a089d5752f",
    "tensor/type.py": "3ba6269da484c9b892f79aae87b98c3a",
}


class TheanoChanged(RuntimeError):
    """Files of the installed Theano differ from version 1.0.5."""


def changed_files(folder: Path | None = None) -> list[str]:
    """Return the paths of the files that are missing or differ from Theano 1.0.5; all paths if it is not installed.

    The paths are relative to the directory of the package ``theano``, by default the one that this process would
    import.
    """
    if folder is None:
        spec = find_spec("theano")
        if spec is None or spec.origin is None:
            return list(_DIGESTS)
        folder = Path(spec.origin).parent
    return [name for name, digest in _DIGESTS.items() if _digest_of(folder / name) != digest]


def changes_in_words() -> str:
    """Return a phrase with the number of changed files and one of them, or an empty string."""
    changed = changed_files()
    if not changed:
        return ""
    n_changed = f"{len(changed)} of {len(_DIGESTS)} checked files"
    return f"Theano differs from version 1.0.5 in {n_changed}, for example theano/{changed[0]}"


def repair_command() -> str:
    """Return the command that installs the files again. It imports nothing from the current directory."""
    return f"{shlex.quote(sys.executable)} -I -m shardpress setup-theano"


def _digest_of(path: Path) -> str:
    """Return the first half of the SHA-256 digest of a file; empty if the file cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:32]
    except OSError:
        return ""
