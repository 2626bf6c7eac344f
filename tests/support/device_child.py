"""Train and encode on a device, and record the compiled code, in a separate process for test_devices.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from shardpress.model.scaler import Scaler
from shardpress_kernels import backend
from shardpress_kernels.network import Head, Network, TargetLoss
from tests.support.cases import ALL_CASES
from tests.support.steps import take_step

DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8") if ALL_CASES else ("u1", "i2", "f8")
RATES = {"momentum": 0.5, "adam": 0.01}
TRAININGS = [("momentum", "uploaded"), ("momentum", "streamed"), ("momentum", "resident"), ("adam", "streamed")]
N_STEPS = 40
N_NETWORK_STEPS = 20
BATCH = 64
N_ROWS = 2500  # two tiles and a part of a third
N_INPUTS = 100
N_FEATURES = 16
NETWORK = Network((N_INPUTS, N_FEATURES))
CORRUPTION = 0.25
LOSS = TargetLoss(weight=0.02, scale=2.0)
# Together they use every activation, code, head and output layer. They take few steps, since a unit may be at its kink.
NETWORKS = {
    "relu": Network(
        (N_INPUTS, 40, N_FEATURES),
        activation="relu",
        code="linear",
        gain=True,
        head=Head("classes", 5),
        nested=True,
        output_layer="hidden",
    ),
    "leaky": Network(
        (N_INPUTS, 40, 24, N_FEATURES),
        activation="leaky-relu",
        code="sigmoid",
        gain=True,
        head=Head("numbers", 1),
        nested=True,
    ),
}
if ALL_CASES:
    NETWORKS["gain"] = Network((N_INPUTS, N_FEATURES), gain=True)
_HAS_ALL = ALL_CASES or "TEST_CARD" in os.environ


def trainings_of(device: str) -> list[tuple[str, str]]:
    """Return rules and places of rows to train one layer with: two of them, and none on OpenCL, which is slow."""
    if _HAS_ALL:
        return TRAININGS
    return [] if device.startswith("opencl") else TRAININGS[:2]


def networks_of(device: str) -> dict[str, Network]:
    """Return the networks to train on a device: all of them, or one for each of the two slow GPUs."""
    if _HAS_ALL:
        return NETWORKS
    name = "relu" if device.startswith("opencl") else "leaky"
    return {name: NETWORKS[name]}


def make_rows(dtype: str = "u1") -> np.ndarray:
    """Return rows near a subspace of a few dimensions, which a network can learn."""
    rng = np.random.default_rng(7)
    hidden = rng.random((N_ROWS, 5)) @ rng.random((5, N_INPUTS)) + 0.1 * rng.random((N_ROWS, N_INPUTS))
    return np.ascontiguousarray(hidden * (100 / hidden.max())).astype(dtype)


def make_minibatches() -> list[np.ndarray]:
    """Return the row numbers of every step. The last minibatch is shorter, as at the end of an epoch."""
    rng = np.random.default_rng(8)
    return [rng.permutation(N_ROWS)[: BATCH if step < N_STEPS - 1 else 17] for step in range(N_STEPS)]


def make_noise(step: int) -> np.ndarray:
    """Return the noise of a whole minibatch."""
    return np.random.default_rng([8, step]).integers(0, 256, (BATCH, N_INPUTS), dtype=np.uint8)


def make_targets(network: Network, step: int) -> np.ndarray | None:
    """Return the targets of a minibatch, or None without a head. Some targets are missing."""
    if network.head is None:
        return None
    rng = np.random.default_rng([10, step])
    is_missing = rng.random(BATCH) < 0.2
    if network.head.kind == "numbers":
        return np.where(is_missing, np.nan, rng.normal(size=BATCH)).astype(np.float32)
    return np.where(is_missing, -1, rng.integers(0, network.head.n_outputs, BATCH)).astype(np.float32)


def make_kept(network: Network, step: int) -> np.ndarray | None:
    """Return how many of the first features the decoder gets for each row of a minibatch; None without nesting."""
    if not network.nested:
        return None
    rng = np.random.default_rng([11, step])
    return np.where(rng.random(BATCH) < 0.5, N_FEATURES, rng.integers(0, N_FEATURES, BATCH)).astype(np.float32)


def start_of(network: Network) -> dict[str, np.ndarray]:
    """Return matrices that keep rows and gradients of equal size in all layers, biases of 0 and gains of 1."""
    rng = np.random.default_rng(9)
    matrices = {name: rng.standard_normal(shape) / np.sqrt(sum(shape)) for name, shape in network.shapes.items()}
    fixed = {name: np.full(a.shape, float(name == "gain")) for name, a in matrices.items() if a.ndim == 1}
    return {name: array.astype(np.float32) for name, array in (matrices | fixed).items()}


def make_scaler(rows: np.ndarray) -> Scaler:
    """Return the scaling of all rows."""
    return Scaler(rows.min(axis=0).astype(np.float64), rows.max(axis=0).astype(np.float64))


def make_scaler_of(dtype: str, rows: np.ndarray) -> Scaler:
    """Return the scaling of rows in a dtype: of two dtypes, to the same variance instead of [0, 1]."""
    scaler = make_scaler(rows)
    if dtype not in ("i2", "f4"):
        return scaler
    deviation = rows.std(axis=0, dtype=np.float64)
    factor = np.divide(0.25, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return replace(scaler, center=rows.mean(axis=0, dtype=np.float64), factor=factor)


def with_cost(step: int) -> bool:
    """Return whether a step computes the cost, so that one training run uses both compiled functions."""
    return step % 3 == 0


class Pieces:
    """An iterable over pieces of rows."""

    def __init__(self, rows: np.ndarray) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from np.array_split(self._rows, 7)


class Graphs:
    """A replacement for ``theano.function`` that records the nodes of each compiled graph."""

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


def train(graphs: Graphs, label: str, network: Network, rule: str, place: str) -> dict[str, np.ndarray]:
    """Return costs, parameters and features of one training run.

    All networks except for `NETWORK` are trained on corrupted rows, and the errors of the rows are returned too.
    """
    from shardpress_kernels.autoencoder import Autoencoder
    from shardpress_kernels.step import TrainingStep

    is_plain = network is NETWORK
    rows = make_rows()
    resident = {"streamed": None, "resident": rows.copy(), "uploaded": Pieces(rows)}[place]
    autoencoder = Autoencoder(network, *make_scaler(rows).arrays(rows.dtype))
    autoencoder.set_parameters(start_of(network))
    corruption = 0.0 if is_plain else CORRUPTION
    n_steps = N_STEPS if is_plain else N_NETWORK_STEPS
    step = TrainingStep(autoencoder, rule, rows.dtype, resident, corruption, LOSS)
    graphs.label = f"step {label}"
    costs = []
    for i, numbers in enumerate(make_minibatches()[:n_steps]):
        minibatch = rows[numbers] if resident is None else numbers
        has_cost = with_cost(i) or not is_plain
        noise = None if is_plain else make_noise(i)
        targets = make_targets(network, i)
        kept = make_kept(network, i)
        costs.append(take_step(step, minibatch, RATES[rule], has_cost, noise, targets, kept))
    graphs.label = f"encode {label}"
    features = autoencoder.encode(rows)
    found = {"costs": np.array([cost for cost in costs if cost is not None]), "features": features}
    found |= autoencoder.parameters()
    if not is_plain:
        graphs.label = f"errors {label}"
        found["errors"] = autoencoder.errors(rows)
        graphs.label = f"decoded {label}"
        found["decoded"] = autoencoder.errors(rows, features)
    return {f"{label} {name}": array for name, array in found.items()}


def encode_every_dtype(graphs: Graphs) -> dict[str, np.ndarray]:
    """Return features of the first rows in every dtype, with parameters that need no training."""
    from shardpress_kernels.autoencoder import Autoencoder

    found = {}
    for dtype in DTYPES:
        rows = make_rows(dtype)[:50]
        autoencoder = Autoencoder(NETWORK, *make_scaler_of(dtype, rows).arrays(rows.dtype))
        autoencoder.set_parameters(start_of(NETWORK))
        graphs.label = f"encode {dtype}"
        found[f"{dtype} features"] = autoencoder.encode(rows)
    return found


def reduction() -> str:
    """Return the C code of an OpenCL reduction of a matrix."""
    theano = backend.load()
    from theano.gpuarray.elemwise import GpuCAReduceCPY

    matrix = theano.tensor.fmatrix()
    function = theano.function([matrix], matrix.sum(axis=0))
    (node,) = (n for n in function.maker.fgraph.apply_nodes if isinstance(n.op, GpuCAReduceCPY))
    names = {"fail": "goto fail;", "params": "context"}
    return str(node.op.c_code(node, "node", ["input"], ["output"], names))


def main(path: str) -> dict[str, Any]:
    """Run all computations and store their arrays in a .npz file. Return the device and the compiled code."""
    device = backend.start(require=True).used
    theano = backend.load()
    graphs = theano.function = Graphs(theano.function)
    found = {}
    for rule, place in trainings_of(device):
        found |= train(graphs, f"{rule} {place}", NETWORK, rule, place)
    for name, network in networks_of(device).items():
        place = "uploaded" if name == "relu" else "streamed"
        found |= train(graphs, name, network, "adam", place)
    found |= encode_every_dtype(graphs)
    np.savez(path, **found)
    graphs.label = "reduction"
    code_of_reduction = reduction() if device.startswith("opencl") else ""
    return {"device": device, "graphs": graphs.seen, "reduction": code_of_reduction}
