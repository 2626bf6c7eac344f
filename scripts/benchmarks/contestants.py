"""The contestants of the races: the same work as a user would write it with each library.

    python scripts/benchmarks/contestants.py ours|blas|jax|torch|torch-compile|torch-graphs|sklearn

Started by `race` in the virtual environment that has the library, it takes one JSON request a line on
standard input and answers each with one line. `prepare` names a case, the method of a contestant, and where its input
lies, and leaves the result beside it, so that all contestants can be held against each other; `time` does the work
again so many times and answers the seconds. PEER_DEVICE=cuda in the environment has PyTorch work there, and
BENCH_CLOCK=process has the processor's time count, of all threads, and not the clock's.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.ours import Blas, Ours
from scripts.benchmarks.peers import Jax, Sklearn, Torch, TorchCompile, TorchGraphs


def main() -> int:
    """Serve requests until standard input closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes elsewhere
    contestant = CONTESTANTS[sys.argv[1]]()
    now = time.process_time if os.environ.get("BENCH_CLOCK") == "process" else time.perf_counter
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "prepare":
            folder = Path(request["folder"])
            prepare = getattr(contestant, request["case"], None)
            if prepare is None:
                answer: dict[str, Any] = {"absent": True}
            else:
                run, result = prepare(folder, **request["sizes"])
                np.savez(folder / f"{sys.argv[1]}.npz", **result())
                answer = {"about": contestant.about}
        else:
            start = now()
            counted = run(request["times"])
            seconds = now() - start if counted is None else counted
            answer = {"seconds": seconds}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


CONTESTANTS = {
    "ours": Ours,
    "blas": Blas,
    "jax": Jax,
    "torch": Torch,
    "torch-compile": TorchCompile,
    "torch-graphs": TorchGraphs,
    "sklearn": Sklearn,
}


if __name__ == "__main__":
    sys.exit(main())
