"""What test_opencl.py runs on two devices, each in a process of its own: train, encode, and tell how it was compiled.

Usage: python tests/support/opencl_child.py OUT.npz OUT.json, with the device in THEANO_FLAGS.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from kernels import backend
from kernels.network import Network
from pipeline.scan.scaler import Scaler

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")
RATES = {"momentum": 0.5, "adam": 0.01}
TRAININGS = (("momentum", "streamed"), ("momentum", "resident"), ("adam", "streamed"))
N_STEPS, BATCH = 40, 64
N_ROWS, N_INPUTS, N_FEATURES = 2500, 100, 16  # two tiles and a bit
NETWORK = Network((N_INPUTS, N_FEATURES))
DECAY = 0.9


def make_rows(dtype: str = "u1") -> np.ndarray:
    """Rows near a plane of a few dimensions, so that there is something to learn."""
    rng = np.random.default_rng(7)
    hidden = rng.random((N_ROWS, 5)) @ rng.random((5, N_INPUTS)) + 0.1 * rng.random((N_ROWS, N_INPUTS))
    return np.ascontiguousarray(hidden * (100 / hidden.max())).astype(dtype)


def make_minibatches() -> list[np.ndarray]:
    """Row numbers of every step; the last minibatch is shorter, as at the end of an epoch."""
    rng = np.random.default_rng(8)
    return [rng.permutation(N_ROWS)[: BATCH if step < N_STEPS - 1 else 17] for step in range(N_STEPS)]


def make_scaler(rows: np.ndarray) -> Scaler:
    """The scaling of all rows."""
    return Scaler(rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64))


def with_cost(step: int) -> bool:
    """So that both compiled functions take part in one training."""
    return step % 3 == 0


class Graphs:
    """Stands in for ``theano.function`` and keeps what every call compiled."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.label = ""
        self.seen: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, inputs: Any, outputs: Any, **options: Any) -> Any:
        compiled = self._function(inputs, outputs, **options)
        kind = self.label
        if "updates" in options:
            kind += " with cost" if outputs else " without cost"
        nodes = [_describe(node) for node in compiled.maker.fgraph.toposort()]
        self.seen.setdefault(kind, []).extend(nodes)
        return compiled


def _describe(node: Any) -> dict[str, Any]:
    output = node.outputs[0].type
    return {"op": type(node.op).__name__, "dtype": getattr(output, "dtype", ""), "ndim": getattr(output, "ndim", 0)}


def train(graphs: Graphs, rule: str, place: str) -> dict[str, np.ndarray]:
    """Costs, parameters and features of one training."""
    from kernels.autoencoder import Autoencoder
    from kernels.graph import reconstruction
    from kernels.step import TrainingStep
    from kernels.updates import Rule

    rows, label, resident = make_rows(), f"{rule} {place}", place == "resident"
    autoencoder = Autoencoder(NETWORK, *make_scaler(rows).arrays(rows.dtype))
    autoencoder.initialize(np.random.default_rng(9))
    step = TrainingStep(autoencoder, Rule(rule, DECAY), rows.dtype, resident=rows.copy() if resident else None)
    step.set_learning_rate(RATES[rule])
    graphs.label = f"step {label}"
    costs = []
    for number, minibatch in enumerate(make_minibatches()):
        costs.append(step(minibatch if resident else rows[minibatch], with_cost=with_cost(number)))
    graphs.label = f"encode {label}"
    found = {"costs": np.array([cost for cost in costs if cost is not None]), "features": autoencoder.encode(rows)}
    if not resident:
        graphs.label = f"others {label}"
        symbol = backend.load().tensor.fmatrix()
        decode = backend.compiled([symbol], reconstruction(NETWORK, symbol, autoencoder.shared))
        found |= {"errors": autoencoder.errors(rows), "decoded": np.asarray(decode(found["features"]))}
    found |= autoencoder.parameters()
    return {f"{label} {name}": array for name, array in found.items()}


def encode_every_dtype(graphs: Graphs) -> dict[str, np.ndarray]:
    """Features of the first rows in every dtype, by parameters that need no training."""
    from kernels.autoencoder import Autoencoder

    found = {}
    for dtype in DTYPES:
        rows = make_rows(dtype)[:50]
        autoencoder = Autoencoder(NETWORK, *make_scaler(rows).arrays(rows.dtype))
        autoencoder.initialize(np.random.default_rng(9))
        graphs.label = f"encode {dtype}"
        found[f"{dtype} features"] = autoencoder.encode(rows)
    return found


def reductions() -> dict[str, dict[str, Any]]:
    """The C code of OpenCL reductions, as it is compiled and as it would be without our repair."""
    theano = backend.load()
    from theano.gpuarray.elemwise import GpuCAReduceCPY

    vector, matrix = theano.tensor.fvector(), theano.tensor.fmatrix()
    sums = {"1-d": vector.sum(), "2-d": matrix.sum(), "2-d rows": matrix.sum(axis=0), "2-d columns": matrix.sum(axis=1)}
    found = {}
    for name, expression in sums.items():
        function = theano.function([vector, matrix], expression, on_unused_input="ignore")
        (node,) = (n for n in function.maker.fgraph.apply_nodes if isinstance(n.op, GpuCAReduceCPY))
        arguments = (node.op, node, "node", ["input"], ["output"], {"fail": "goto fail;", "params": "context"})
        code, version = GpuCAReduceCPY.c_code, GpuCAReduceCPY.c_code_cache_version_apply
        found[name] = {
            "n_dims": node.inputs[0].ndim,
            "repaired": code(*arguments),
            "original": code.__wrapped__(*arguments),
            "repaired version": repr(version(node.op, node)),
            "original version": repr(version.__wrapped__(node.op, node)),
        }
    return found


def main(arrays: str, facts: str) -> None:
    """Do everything, and write the two files."""
    device = backend.start(require=True)
    theano = backend.load()
    graphs = theano.function = Graphs(theano.function)
    found = {}
    for rule, place in TRAININGS:
        found |= train(graphs, rule, place)
    found |= encode_every_dtype(graphs)
    graphs.label = "reductions"
    told = {"device": device.used, "name": device.name, "graphs": graphs.seen}
    told["reductions"] = reductions() if device.used != "cpu" else {}
    np.savez(arrays, **found)
    with open(facts, "w") as file:
        json.dump(told, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
