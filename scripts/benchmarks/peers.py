"""One of the programs under comparison: the same work with shardpress, BLAS, JAX, PyTorch or scikit-learn.

    python -m scripts.benchmarks.peers NAME CASE FOLDER SIZES

The harness starts it with the Python in which the library is installed. The case is a method of the program, and its
arguments are JSON. The input is in the directory, and the result is written there, so that the results of all programs
can be compared. The process then prints a description of the program. For each number that it reads from standard
input, it repeats the work that many times, and prints the seconds. With PEER_DEVICE=cuda PyTorch uses a card. With
BENCH_CLOCK=process the clock counts the processor time of all threads. With BENCH_ONCE the process ends after the work.

For a comparison with another commit, the harness starts this module in the tree of that commit. The arguments, the
cases of `Ours` and `compare.fitted_model` therefore stay the same from commit to commit.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shardpress_kernels.network import Head, Network, TargetLoss
from shardpress_kernels.rules import DECAY

Arrays = Mapping[str, np.ndarray]
Function = Callable[[Any], Any]
Stepper = tuple[Function, Callable[[], Arrays]]
# A function that does the work n times, and a function that returns the result. The first function returns the seconds
# to count if it does more work than the case requires.
Prepared = tuple[Callable[[int], float | None], Callable[[], Arrays]]

RATE = 0.1
LOSS = TargetLoss(weight=0.02, scale=2.0)  # of a network with a head
BLOCK_ROWS = 8192


def load_input(folder: Path) -> dict[str, np.ndarray]:
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


def cost_of(shards: str, minimum: np.ndarray, scale: np.ndarray, p: Arrays) -> Arrays:
    """Return the mean squared error of a trained model on some rows, in scaled units."""
    with h5py.File(h5_files(shards)[0]) as file:
        x = (file["X"][:4096].astype(np.float32) - minimum) * scale
    h = 1 / (1 + np.exp(-(x @ p["W"] + p["b_hidden"])))
    return {"cost": np.mean((h @ p["W"].T + p["b_output"] - x) ** 2)}


class Ours:
    """This project."""

    def __init__(self) -> None:
        from shardpress_kernels import backend

        self.about = f"shardpress on {backend.start()}"

    def autoencoder(self, network: Network, values: Arrays, *scaling: np.ndarray) -> Any:
        """Return an autoencoder with given parameters."""
        from shardpress_kernels.autoencoder import Autoencoder

        autoencoder = Autoencoder(network, *scaling)
        autoencoder.set_parameters({name: values[name] for name in autoencoder.shared})
        return autoencoder

    def step(self, folder: Path, network: Network) -> Prepared:
        """Take a training step."""
        from shardpress_kernels.step import TrainingStep

        values = load_input(folder)
        autoencoder = self.autoencoder(network, values)
        loss = LOSS if network.head is not None else None
        step = TrainingStep(autoencoder, "momentum", np.dtype(np.float32), loss=loss)
        n_rows = len(values["x"])
        n_at_once = step.n_at_once(n_rows)
        rows = np.concatenate([values["x"]] * n_at_once)
        targets = None
        kept = None
        if network.head is not None:
            targets = np.concatenate([values["targets"].astype(np.float32)] * n_at_once)
        if network.nested:
            kept = np.concatenate([values["kept"].astype(np.float32)] * n_at_once)
        bias = list(autoencoder.shared.values())[1]

        def run(n: int) -> None:
            for n_left in range(n, 0, -n_at_once):  # as in a training run, a device gets several minibatches at a time
                step.begin(rows, None, n_rows, targets, kept)
                step.take([RATE] * min(n_left, n_at_once))
            bias.get_value()  # waits for a device

        run(3)
        result = autoencoder.parameters()
        return run, lambda: result

    def encode(self, folder: Path, network: Network) -> Prepared:
        """Encode rows in memory."""
        values = load_input(folder)
        autoencoder = self.autoencoder(network, values, values["minimum"], values["scale"])
        features = np.empty((len(values["rows"]), network.n_features), dtype=np.float32)
        run = repeat(lambda: autoencoder.encode(values["rows"], features))
        return run, lambda: {"features": features}

    def encode_files(self, folder: Path, shards: str, model: str) -> Prepared:
        """Encode shards in a whole run."""
        from shardpress import open_features

        output = folder / "ours"
        run = repeat(lambda: self.run(output, input=(shards,), model=model))
        return run, lambda: {"features": np.asarray(open_features(output).features.compute())}

    def train_files(self, folder: Path, shards: str, epochs: int, batch_size: int, memory: int) -> Prepared:
        """Scan and train; the encoding of the run does not count."""
        from shardpress import load_model

        output = folder / "ours"
        settings = {
            "input": (shards,),
            "epochs": epochs,
            "batch_size": batch_size,
            "memory_budget": memory,
            "optimizer": "momentum",
            "learning_rate": RATE,
            "schedule": "constant",
            "hidden": (),
            "code_activation": "sigmoid",
            "decoder_gain": False,
            "start": "random",
            "biases": "zero",
            "validation_fraction": 0.0,
        }

        def run(n: int) -> float:
            runs = [self.run(output, **settings) for _ in range(n)]
            return sum(seconds["scan"] + seconds["training"] for seconds in runs)

        def result() -> Arrays:
            model = load_model(output)
            return cost_of(shards, *model.scaler.arrays(np.dtype(np.float32)), model.parameters)

        run(1)
        return run, result

    def run(self, output: Path, **settings: Any) -> Mapping[str, float]:
        """Run the pipeline, and return the seconds of each stage."""
        from shardpress.run.engine import run
        from shardpress.settings.config import Config

        shutil.rmtree(output, ignore_errors=True)
        outcome = run(Config.of(output=str(output), **settings), ["benchmark"])
        return getattr(outcome, "summary", outcome).seconds  # earlier commits return the summary itself


class Plain(Ours):
    """This project, with the same network without a head and without nesting."""

    def step(self, folder: Path, network: Network) -> Prepared:
        run, _ = super().step(folder, network.encoder)
        return run, dict


class Blas:
    """OpenBLAS alone, which computes the matrix products of the same work. NumPy has an older version."""

    def __init__(self) -> None:
        import scipy_openblas32

        library = ctypes.CDLL(str(Path(scipy_openblas32.get_lib_dir()) / "libscipy_openblas.so"))
        library.scipy_openblas_get_corename.restype = ctypes.c_char_p
        self.about = f"OpenBLAS, kernels for {library.scipy_openblas_get_corename().decode()}"
        self._sgemm = library.scipy_cblas_sgemm
        matrix = [ctypes.POINTER(ctypes.c_float), ctypes.c_int]
        self._sgemm.argtypes = [*[ctypes.c_int] * 6, ctypes.c_float, *matrix, *matrix, ctypes.c_float, *matrix]

    def product(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        """Compute ``out = a . b``; `a` or `b` can be transposed views."""
        orders = []
        operands = []
        for matrix in (a, b, out):
            is_transposed = not matrix.flags.c_contiguous
            orders.append(112 if is_transposed else 111)  # CblasTrans, CblasNoTrans
            stored = matrix.T if is_transposed else matrix
            operands.append((stored.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), stored.shape[1]))
        sizes = (*out.shape, a.shape[1])
        row_major = 101
        self._sgemm(row_major, *orders[:2], *sizes, 1.0, *operands[0], *operands[1], 0.0, *operands[2])

    def step(self, folder: Path, network: Network) -> Prepared:
        """Compute the products of a training step with tied weights."""
        values = load_input(folder)
        W, a = layers(values, network, values["x"])
        dW = [np.empty_like(each) for each in W]
        y = [np.empty_like(each) for each in a]
        n = len(W)

        def work() -> None:
            for i in range(n):  # the features
                self.product(a[i], W[i], a[i + 1])
            for i in reversed(range(n)):  # the reconstruction
                self.product(a[i + 1], W[i].T, y[i])
            for i in range(n):  # the gradients
                self.product(y[i], W[i], a[i + 1])
                self.product(y[i].T, a[i + 1], dW[i])
            for i in reversed(range(n)):
                self.product(a[i].T, a[i + 1], dW[i])
                if i > 0:
                    self.product(a[i + 1], W[i].T, y[i])

        return repeat(work), dict

    def encode(self, folder: Path, network: Network) -> Prepared:
        """Compute the products of encoding rows in memory."""
        values = load_input(folder)
        W, a = layers(values, network, values["rows"].astype(np.float32))

        def work() -> None:
            for i, weights in enumerate(W):
                self.product(a[i], weights, a[i + 1])

        return repeat(work), dict

    def square(self, folder: Path, n: int) -> Prepared:
        """Multiply two large square matrices."""
        a = np.random.default_rng(0).random((n, n), dtype=np.float32)
        out = np.empty_like(a)
        return repeat(lambda: self.product(a, a, out)), dict


def layers(values: Arrays, network: Network, rows: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the weights of each layer, and the rows followed by arrays for the activations of each layer."""
    weights = [values[name] for name, _, _ in network.layers]
    return weights, [rows, *(np.empty((len(rows), each.shape[1]), np.float32) for each in weights)]


class Peer:
    """The cases as a user of another library would write them, and the code that all libraries share.

    A subclass adds ``array``, which returns an array on its device; ``scaler``, which returns a function that scales
    raw rows; ``stepper``, which returns a function that takes a step on raw rows and a function that returns the
    parameters; ``encoder``, which returns a function that encodes raw rows; ``first``, which returns features whose
    last ones are 0; and ``cross_entropy``, which returns the mean loss of classes. ``activations`` contains the
    library's functions by name.
    """

    activations: Mapping[str, Function]

    def wait(self) -> None:
        """Wait until all steps have been taken."""

    def scaler(self, minimum: np.ndarray, scale: np.ndarray) -> Function:
        """Return a function that scales raw rows."""
        low = self.array(minimum)
        factor = self.array(scale)
        return lambda rows: (self.as_float(rows) - low) * factor

    def affine(self, x: Any, W: Any, b: Any) -> Any:
        """Return ``x . W + b``."""
        return x @ W + b

    def features(self, network: Network, p: Mapping[str, Any], x: Any) -> Any:
        """Return the features of scaled rows."""
        for (W, b, _), activation in zip(network.layers, network.activations, strict=True):
            x = self.activations[activation](self.affine(x, p[W], p[b]))
        return x

    def cost(self, network: Network, p: Mapping[str, Any], x: Any, more: Mapping[str, Any]) -> Any:
        """Return the mean squared error of the reconstruction of scaled rows, and with a head the loss of the targets.

        `more` contains the ``targets`` of the rows for a head, and the number ``kept`` of the first features of each
        row that the decoder gets for a nested network.
        """
        h = self.features(network, p, x)
        y = self.first(h, more["kept"]) if network.nested else h
        for i, (W, _, b) in reversed(list(enumerate(network.layers))):
            y = self.affine(y, p[W].T, p[b])
            if i > 0:
                y = self.activations[network.activation](y)
        error = ((x - y) ** 2).mean()
        if network.head is None:
            return error
        z = LOSS.scale * self.affine(h, p["W_head"], p["b_head"])
        return error + LOSS.weight * self.cross_entropy(z, more["targets"])

    def blocks(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """Yield blocks of rows; a thread reads ahead."""
        blocks = map(read_block, places(paths))
        with ThreadPoolExecutor(1) as reader:
            pending = reader.submit(next, blocks, None)
            while (block := pending.result()) is not None:
                pending = reader.submit(next, blocks, None)
                yield block

    def step(self, folder: Path, network: Network) -> Prepared:
        values = load_input(folder)
        step, parameters = self.stepper(network, lambda rows: rows, values)
        x = self.array(values["x"])
        more = {name: self.array(values[name]) for name in ("targets", "kept") if name in values}
        run = repeat(lambda: step(x, more), self.wait, warm_up=3)
        result = {name: np.array(array) for name, array in parameters().items()}
        return run, lambda: result

    def encode(self, folder: Path, network: Network) -> Prepared:
        values = load_input(folder)
        encode = self.encoder(network, self.scaler(values["minimum"], values["scale"]), values)
        rows = self.on_host(values["rows"])
        run = repeat(lambda: encode(rows))
        return run, lambda: {"features": np.asarray(encode(rows))}

    def fitted_encoder(self, model: Arrays) -> Function:
        """Return a function that encodes raw rows with a fitted model."""
        return self.encoder(Network(model["W"].shape), self.scaler(*scaling(model)), model)

    def encode_files(self, folder: Path, shards: str, model: str) -> Prepared:
        with h5py.File(Path(model) / "index.h5") as file:
            group = file["shardpress/model"]
            fitted = {name: group[name][()] for name in ("minimum", "maximum", "W", "b_hidden", "b_output")}
        encode = self.fitted_encoder(fitted)
        output = folder / f"{type(self).__name__}.h5"
        paths = h5_files(shards)
        n_rows = sum(n for n, _ in map(shape_of, paths))

        def work() -> None:
            with h5py.File(output, "w") as file:
                features = file.create_dataset("features", (n_rows, fitted["W"].shape[1]), np.float32)
                start = 0
                for block in self.blocks(paths):
                    features[start : start + len(block)] = encode(block)
                    start += len(block)

        def result() -> Arrays:
            with h5py.File(output) as file:
                return {"features": file["features"][()]}

        return repeat(work), result

    def train_files(self, folder: Path, shards: str, epochs: int, batch_size: int, memory: int) -> Prepared:
        paths = h5_files(shards)
        result: dict[str, np.ndarray] = {}

        def work() -> None:
            model = initial_model(self.blocks(paths))
            minimum, scale = scaling(model)
            step, parameters = self.stepper(Network(model["W"].shape), self.scaler(minimum, scale), model)
            rng = np.random.default_rng(1)
            for block in self._blocks_of_epochs(paths, epochs, memory):
                order = rng.permutation(len(block))
                for start in range(0, len(block), batch_size):
                    step(self.minibatch(block[order[start : start + batch_size]]), {})
            result.update(cost_of(shards, minimum, scale, parameters()))

        return repeat(work), lambda: result

    def _blocks_of_epochs(self, paths: list[Path], epochs: int, memory: int) -> Iterator[np.ndarray]:
        """Yield the rows of all epochs: all rows at once if they fit in memory, otherwise in blocks."""
        with h5py.File(paths[0]) as file:
            item_bytes = file["X"].dtype.itemsize
        resident = []
        if sum(n_rows * n_columns * item_bytes for n_rows, n_columns in map(shape_of, paths)) < memory // 2:
            resident.append(np.concatenate(list(self.blocks(paths))))
        for _ in range(epochs):
            yield from resident or self.blocks(paths)


def shape_of(path: Path) -> tuple[int, int]:
    """Return the number of rows and columns of a file."""
    with h5py.File(path) as file:
        shape: tuple[int, int] = file["X"].shape
        return shape


def places(paths: list[Path]) -> list[tuple[Path, int]]:
    """Return the file and the first row of each block."""
    return [(path, start) for path in paths for start in range(0, shape_of(path)[0], BLOCK_ROWS)]


def read_block(place: tuple[Path, int]) -> np.ndarray:
    """Read a block of rows."""
    path, start = place
    with h5py.File(path) as file:
        rows: np.ndarray = file["X"][start : start + BLOCK_ROWS]
        return rows


def initial_model(blocks: Iterable[np.ndarray]) -> Arrays:
    """Return the ranges of the columns, and random parameters."""
    ranges = [(block.min(axis=0), block.max(axis=0)) for block in blocks]
    minimum = np.min([low for low, _ in ranges], axis=0).astype(np.float64)
    maximum = np.max([high for _, high in ranges], axis=0).astype(np.float64)
    n_inputs = len(minimum)
    weights = np.random.default_rng(0).normal(size=(n_inputs, 64)) / np.sqrt(n_inputs + 64)
    biases = {"b_hidden": np.zeros(64, np.float32), "b_output": np.zeros(n_inputs, np.float32)}
    return {"minimum": minimum, "maximum": maximum, "W": weights.astype(np.float32), **biases}


def scaling(model: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """Return minimum and scale, float32."""
    span = model["maximum"] - model["minimum"]
    scale = np.divide(1, span, out=np.zeros_like(span), where=span > 0)
    return model["minimum"].astype(np.float32), scale.astype(np.float32)


class NumPy(Peer):
    """NumPy and h5py alone, which load in the least time."""

    def __init__(self) -> None:
        self.about = f"NumPy {np.__version__}"
        self.activations = {"sigmoid": lambda z: 1 / (1 + np.exp(-z))}
        self.array = np.asarray

    def as_float(self, rows: np.ndarray) -> np.ndarray:
        return rows.astype(np.float32)

    def encoder(self, network: Network, scaler: Function, parameters: Arrays) -> Function:
        return lambda rows: self.features(network, parameters, scaler(rows))


class Jax(Peer):
    """JAX: jax.jit, with donated buffers for the step."""

    def __init__(self) -> None:
        import jax

        self.jax = jax
        self.about = f"JAX {jax.__version__}"
        self.activations = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "linear": lambda z: z}
        self.array = self.on_host = jax.numpy.array
        self._state: list[Any] = []  # parameters and velocities

    def as_float(self, rows: Any) -> Any:
        return rows.astype(self.jax.numpy.float32)

    def minibatch(self, rows: np.ndarray) -> Any:
        return rows

    def stepper(self, network: Network, scaler: Function, start: Arrays) -> Stepper:
        step = self.jax.jit(partial(self._step, network, scaler), donate_argnums=(0, 1))
        parameters = {name: self.array(start[name]) for name in network.shapes}
        velocities = {name: self.jax.numpy.zeros_like(array) for name, array in parameters.items()}
        self._state = [parameters, velocities]

        def run(rows: Any, more: Mapping[str, Any]) -> None:
            self._state = step(*self._state, rows, more)

        return run, lambda: {name: np.array(array) for name, array in self._state[0].items()}

    def _step(
        self, network: Network, scaler: Function, p: dict[str, Any], v: dict[str, Any], rows: Any, more: Any
    ) -> Any:
        """Return the next parameters and velocities."""
        gradient = self.jax.grad(lambda p: self.cost(network, p, scaler(rows), more))(p)
        v = {name: DECAY * v[name] - RATE * gradient[name] for name in p}
        return {name: p[name] + v[name] for name in p}, v

    def first(self, h: Any, kept: Any) -> Any:
        return self.jax.numpy.where(self.jax.numpy.arange(h.shape[1]) < kept[:, None], h, 0)

    def cross_entropy(self, z: Any, targets: Any) -> Any:
        logarithms = self.jax.nn.log_softmax(z)
        return -self.jax.numpy.take_along_axis(logarithms, targets[:, None], axis=1).mean()

    def wait(self) -> None:
        self.jax.block_until_ready(self._state)

    def encoder(self, network: Network, scaler: Function, parameters: Arrays) -> Function:
        p = {name: self.array(parameters[name]) for name in network.shapes}
        encode = self.jax.jit(lambda rows: self.features(network, p, scaler(rows)))
        return lambda rows: encode(rows).block_until_ready()


class Torch(Peer):
    """PyTorch, eager or compiled.

    Parameters
    ----------
    mode : str, optional
        Mode of ``torch.compile``. In the mode "reduce-overhead", a card records CUDA graphs.
    """

    def __init__(self, mode: str | None = None) -> None:
        import torch

        self.torch = torch
        self._mode = mode
        self._device = os.environ.get("PEER_DEVICE", "cpu")
        where = torch.cuda.get_device_name() if self._device == "cuda" else "CPU"
        self.about = f"PyTorch {torch.__version__} on {where}, {f'torch.compile, {mode}' if mode else 'eager'}"
        self.activations = {"relu": torch.relu, "sigmoid": torch.sigmoid, "linear": lambda z: z}
        self.on_host = torch.from_numpy

    def array(self, values: np.ndarray) -> Any:
        return self.torch.from_numpy(values).to(self._device)

    minibatch = array

    def as_float(self, rows: Any) -> Any:
        return rows.float()

    def affine(self, x: Any, W: Any, b: Any) -> Any:
        # The compiler fuses the operations itself. With PyTorch 2.13 restricted to AVX2, addmm returned wrong numbers.
        return super().affine(x, W, b) if self._mode else self.torch.addmm(b, x, W)

    def stepper(self, network: Network, scaler: Function, start: Arrays) -> Stepper:
        p = {name: self.torch.tensor(start[name], device=self._device, requires_grad=True) for name in network.shapes}
        optimizer = self.torch.optim.SGD(p.values(), lr=RATE, momentum=DECAY, fused=True)
        cost = self._maybe_compiled(lambda rows, more: self.cost(network, p, scaler(rows), more))

        def step(rows: Any, more: Mapping[str, Any]) -> None:
            optimizer.zero_grad()
            cost(rows, more).backward()
            optimizer.step()

        return step, lambda: {name: array.detach().cpu().numpy() for name, array in p.items()}

    def first(self, h: Any, kept: Any) -> Any:
        return h * (self.torch.arange(h.shape[1], device=self._device) < kept[:, None])

    def cross_entropy(self, z: Any, targets: Any) -> Any:
        return self.torch.nn.functional.cross_entropy(z, targets)

    def wait(self) -> None:
        if self._device == "cuda":
            self.torch.cuda.synchronize()

    def encoder(self, network: Network, scaler: Function, parameters: Arrays) -> Function:
        p = {name: self.array(parameters[name]) for name in network.shapes}
        encode = self._maybe_compiled(lambda rows: self.features(network, p, scaler(rows)))

        def run(rows: Any) -> Any:
            with self.torch.inference_mode():
                return encode(self.torch.as_tensor(rows).to(self._device)).cpu()

        return run

    def _maybe_compiled(self, function: Function) -> Function:
        return self.torch.compile(function, mode=self._mode) if self._mode else function

    def blocks(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """Yield blocks of rows; two processes of a DataLoader read ahead."""

        def read(place: tuple[Path, int]) -> Any:
            return self.torch.from_numpy(read_block(place))

        loader = self.torch.utils.data.DataLoader(places(paths), batch_size=None, num_workers=2, collate_fn=read)
        for block in loader:
            yield block.numpy()

    def square(self, folder: Path, n: int) -> Prepared:
        """Multiply two large square matrices."""
        a = self.torch.rand((n, n), device=self._device)
        return repeat(lambda: self.torch.mm(a, a), self.wait), dict


class Sklearn(Peer):
    """scikit-learn: MinMaxScaler and PCA with the same number of features, another model with similar work."""

    def __init__(self) -> None:
        import sklearn

        self.about = f"scikit-learn {sklearn.__version__}"

    def fitted_encoder(self, model: Arrays) -> Function:
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import MinMaxScaler

        scaler = MinMaxScaler().fit(np.stack([model["minimum"], model["maximum"]]).astype(np.float32))
        sample = np.random.default_rng(0).random((2000, len(model["minimum"])), dtype=np.float32)
        pca = PCA(model["W"].shape[1]).fit(sample)
        return lambda rows: pca.transform(scaler.transform(rows.astype(np.float32)))


PROGRAMS: dict[str, Callable[[], Any]] = {
    "ours": Ours,
    "plain": Plain,
    "blas": Blas,
    "numpy": NumPy,
    "jax": Jax,
    "torch": Torch,
    "torch-compile": partial(Torch, "default"),
    "torch-graphs": partial(Torch, "reduce-overhead"),
    "sklearn": Sklearn,
}


def network_of(plain: Mapping[str, Any]) -> Network:
    """Return a network, given its fields as JSON represents them."""
    head = None if plain["head"] is None else Head(**plain["head"])
    return Network(**{**plain, "widths": tuple(plain["widths"]), "head": head})


def main() -> None:
    """Prepare a case, write its result, and measure the work until standard input closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # because libraries also print to standard output
    name, case, folder, text = sys.argv[1:]
    sizes = json.loads(text)
    if "network" in sizes:
        sizes["network"] = network_of(sizes["network"])
    program = PROGRAMS[name]()
    run, result = getattr(program, case)(Path(folder), **sizes)
    if "BENCH_ONCE" in os.environ:
        return
    np.savez(Path(folder) / f"{name}.npz", **result())
    print(program.about, file=answers)
    clock = time.process_time if os.environ.get("BENCH_CLOCK") == "process" else time.perf_counter
    for line in sys.stdin:
        start = clock()
        seconds = run(int(line))
        print(clock() - start if seconds is None else seconds, file=answers)


if __name__ == "__main__":
    main()
