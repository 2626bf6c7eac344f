"""The contestants of the races: the same work as a user would write it with each library.

    python scripts/benchmarks/contestants.py ours|blas|jax|torch|torch-compile|torch-graphs|sklearn

Started by `race` in the virtual environment that has the library, it takes one JSON request a line on standard input
and answers each with one line. `prepare` names a case, the method of a contestant, and the directory of its input, and
writes the result there, so that the results of all contestants can be compared; `time` does the work again a number of
times and answers the seconds. PEER_DEVICE=cuda in the environment has PyTorch work there, and BENCH_CLOCK=process
counts the processor time of all threads instead of the clock's.
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

# A prepared case: a function that does its work n times, and one that returns the result as arrays. The first one may
# return the seconds that count, if it does more than the case asks for.
Prepared = tuple[Callable[[int], float | None], Callable[[], dict[str, np.ndarray]]]

MOMENTUM = 0.9
RATE = 0.1
BLOCK_ROWS = 8192
CONTESTANTS = {
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
        return {name: file[name] for name in file.files}


def repeated(work: Callable[[], object], wait: Callable[[], object] = lambda: None) -> Callable[[int], None]:
    """Return a function that does some work n times, and then waits for its end."""

    def run(n: int) -> None:
        for _ in range(n):
            work()
        wait()

    return run


def cost_of(shards: Path, minimum: np.ndarray, scale: np.ndarray, p: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the mean squared error of a trained model on some rows, in scaled units."""
    import h5py

    with h5py.File(h5_files(shards)[0]) as file:
        x = (file["X"][:4096].astype(np.float32) - minimum) * scale
    h = 1 / (1 + np.exp(-(x @ p["W"] + p["b_hidden"])))
    return np.array(np.mean((h @ p["W"].T + p["b_output"] - x) ** 2))


def h5_files(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("*.h5"))


def main() -> int:
    """Serve requests until standard input closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that no library's output is among the answers
    name = sys.argv[1]
    module, _, kind = CONTESTANTS[name].partition(".")
    contestant = getattr(import_module(f"scripts.benchmarks.{module}"), kind)()
    now = time.process_time if os.environ.get("BENCH_CLOCK") == "process" else time.perf_counter
    run: Callable[[int], float | None] = repeated(int)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "time":
            start = now()
            counted = run(request["times"])
            answer = {"seconds": now() - start if counted is None else counted}
        elif not hasattr(contestant, request["case"]):
            answer = {"absent": True}
        else:
            folder = Path(request["folder"])
            run, result = getattr(contestant, request["case"])(folder, **request["sizes"])
            np.savez(folder / f"{name}.npz", **result())
            answer = {"about": contestant.about}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
