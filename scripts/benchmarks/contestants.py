"""A contestant of the races: a process that does the same work as the others, with one library.

    python scripts/benchmarks/contestants.py ours|blas|jax|torch|torch-compile|torch-graphs|sklearn

The races start it with the Python in which the library is installed. It reads JSON requests from standard input, one
per line, and answers each with one line. `prepare` names a case, which is a method of the contestant, and the directory
of its input. The result is written to this directory, so that the results of all contestants can be compared. `time`
repeats the work a number of times and returns the seconds. With PEER_DEVICE=cuda PyTorch uses a card. With
BENCH_CLOCK=process the clock counts the processor time of all threads.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from kernels.network import Network

# A prepared case: a function that does its work n times, and a function that returns the result as arrays. The first
# function returns the seconds to count if it does more work than the case requires.
Prepared = tuple[Callable[[int], float | None], Callable[[], dict[str, np.ndarray]]]

MOMENTUM = 0.9
RATE = 0.1
BLOCK_ROWS = 8192
CLASSES = {
    "ours": "ours.Ours",
    "blas": "ours.Blas",
    "jax": "peers.Jax",
    "torch": "peers.Torch",
    "torch-compile": "peers.TorchCompile",
    "torch-graphs": "peers.TorchGraphs",
    "sklearn": "peers.Sklearn",
}


def network_of(fields: Mapping[str, Any]) -> Network:
    """Return a network from its fields in JSON."""
    return Network(**{**fields, "widths": tuple(fields["widths"])})


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """Return the input of a case in memory."""
    with np.load(folder / "input.npz") as file:
        return dict(file)


def repeat(
    work: Callable[[], object], wait: Callable[[], object] = lambda: None, warm_up: int = 1
) -> Callable[[int], None]:
    """Warm up, and return a function that does some work n times and waits until it is complete."""

    def run(n: int) -> None:
        for _ in range(n):
            work()
        wait()

    run(warm_up)
    return run


def h5_files(folder: str) -> list[Path]:
    """Return the shards in a directory."""
    return sorted(Path(folder).glob("*.h5"))


def cost_of(shards: str, minimum: np.ndarray, scale: np.ndarray, p: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the mean squared error of a trained model on some rows, in scaled units."""
    import h5py

    with h5py.File(h5_files(shards)[0]) as file:
        x = (file["X"][:4096].astype(np.float32) - minimum) * scale
    h = 1 / (1 + np.exp(-(x @ p["W"] + p["b_hidden"])))
    return np.array(np.mean((h @ p["W"].T + p["b_output"] - x) ** 2))


class Server:
    """Answers the requests of a race."""

    def __init__(self, name: str) -> None:
        module, _, class_name = CLASSES[name].partition(".")
        self.name = name
        self.contestant = getattr(import_module(f"scripts.benchmarks.{module}"), class_name)()
        self.clock = time.process_time if os.environ.get("BENCH_CLOCK") == "process" else time.perf_counter
        self.run: Callable[[int], float | None] = repeat(int)

    def prepare(self, case: str, folder: str, sizes: dict[str, Any]) -> dict[str, Any]:
        """Prepare a case, and write its result."""
        if not hasattr(self.contestant, case):
            return {"absent": True}
        self.run, result = getattr(self.contestant, case)(Path(folder), **sizes)
        np.savez(Path(folder) / f"{self.name}.npz", **result())
        return {"about": self.contestant.about}

    def time(self, times: int) -> dict[str, Any]:
        """Do the work a number of times."""
        start = self.clock()
        seconds = self.run(times)
        return {"seconds": self.clock() - start if seconds is None else seconds}


def main() -> int:
    """Answer requests until standard input closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # because libraries also print to standard output
    server = Server(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        answer = getattr(server, request.pop("do"))(**request)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
