"""Run every kernel of every graph under ThreadSanitizer, with one thread of the machine per thread of a block.

    python -m tests.support.thread_sanitizer            all networks, or only the named ones

The program reports two threads of a block that access the same address without a barrier between the accesses, if one
of them writes. The exit code is then 1. Blocks run one after another, so conflicts between blocks are not found.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.support.cuda import stub
from tests.support.interpreters import EndedProcess, run_python

EXIT_CODE = 66  # exit code of a process with findings
# Arguments of personality(2): a value that changes nothing, and ADDR_NO_RANDOMIZE.
_ASK = 0xFFFFFFFF
_NO_RANDOMIZE = 0x0040000
_ALONE = """
import os
del os.environ["LD_PRELOAD"]  # compilers are not watched
"""
_GRAPHS = """
from tests.support.graphs_child import main
main({names})
"""


def run_sanitized(code: str, **variables: str) -> EndedProcess:
    """Run `code` as `run_python` does, on the emulated card with ThreadSanitizer in its kernels."""
    found = subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True)
    card = stub.variables(forwarded=True, threads=1)
    # The sanitizer's `dlopen` ignores the search path of a library for other libraries.
    card["LD_LIBRARY_PATH"] = f"{card['LD_LIBRARY_PATH']}:{stub.nvrtc().parent}"
    options = f"exitcode={EXIT_CODE}:report_signal_unsafe=0"
    with _one_layout():
        return run_python(_ALONE + code, LD_PRELOAD=found.stdout.strip(), TSAN_OPTIONS=options, **card, **variables)


@contextmanager
def _one_layout() -> Iterator[None]:
    """Disable address space randomization in child processes, which ThreadSanitizer of some g++ versions needs."""
    personality = ctypes.CDLL(None).personality
    before = personality(_ASK)
    personality(before | _NO_RANDOMIZE)  # if this is not allowed, the process may start nevertheless
    try:
        yield
    finally:
        personality(before)


def main(names: Sequence[str]) -> int:
    """Print the findings and return the exit code."""
    # Avoid libgpuarray's cache, which contains kernels that were compiled without the sanitizer.
    ended = run_sanitized(_GRAPHS.format(names=list(names)), THEANO_FLAGS="device=cuda,gpuarray.cache_path=")
    print(ended.stderr if ended.code else "no data races between threads of a block")
    return int(ended.code != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
