"""ThreadSanitizer over every kernel of every graph, each thread of a block a thread of the machine's.

    python -m tests.support.watched            all of them; with names of networks, these

It sees when two threads of a block come to one place, one of them writes, and no barrier lies between; then the exit
code is 1. Blocks run one after the other, so what two of them do to each other it does not see.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support.cuda import stub
from tests.support.interpreters import Ended, fresh

__all__ = ["FOUND", "watched"]

FOUND = 66  # the exit code, whatever else comes of it
_ASK, _NO_RANDOMIZE = 0xFFFFFFFF, 0x0040000  # of personality(2)
_ALONE = """
import os
del os.environ["LD_PRELOAD"]  # compilers are not watched
"""
_GRAPHS = """
from tests.support.graphs_child import main
main({names})
"""


def watched(code: str, **variables: str) -> Ended:
    """Run `code` as `fresh` does, with the stub's card, whose kernels are watched."""
    found = subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    card = stub.variables(forwarded=True, threads=1)
    # Its own `dlopen` does not know where a library looks for others.
    card["LD_LIBRARY_PATH"] = f"{card['LD_LIBRARY_PATH']}:{stub.nvrtc().parent}"
    options = f"exitcode={FOUND}:report_signal_unsafe=0"
    with _one_layout():
        return fresh(_ALONE + code, LD_PRELOAD=found.stdout.strip(), TSAN_OPTIONS=options, **card, **variables)


@contextmanager
def _one_layout() -> Iterator[None]:
    """Processes that are started have their memory where it always is: elsewhere some of g++'s own cannot begin."""
    personality = ctypes.CDLL(None).personality
    before = personality(_ASK)
    personality(before | _NO_RANDOMIZE)  # where that is not allowed it may still begin
    try:
        yield
    finally:
        personality(before)


def main(names: Sequence[str]) -> int:
    """Say what was found."""
    # Without libgpuarray's cache of kernels, which holds those that nobody watches.
    ended = watched(_GRAPHS.format(names=list(names)), THEANO_FLAGS="device=cuda,gpuarray.cache_path=")
    print(ended.stderr if ended.code else "no kernel's threads come to one place without a barrier between them")
    return int(ended.code != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
