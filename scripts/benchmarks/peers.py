"""The peers of the races: the same work, written as a user of JAX, PyTorch or scikit-learn would write it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kernels.network import Network
from scripts.benchmarks.contestants import (
    BLOCK_ROWS,
    MOMENTUM,
    RATE,
    Prepared,
    arrays,
    cost_of,
    h5_files,
    network_of,
    repeat,
)

Arrays = Mapping[str, np.ndarray]
Function = Callable[[Any], Any]
Stepper = tuple[Function, Callable[[], dict[str, np.ndarray]]]


class Peer:
    """The cases, and the code that all libraries share.

    A subclass adds ``array``, which returns an array on its device; ``scaler``, which returns a function that scales
    raw rows; ``stepper``, which returns a function that takes a step on raw rows and a function that returns the
    parameters; and ``encoder``, which returns a function that encodes raw rows. ``activations`` contains the
    library's functions by name.
    """

    about = ""
    activations: Mapping[str, Function]

    def on_host(self, values: np.ndarray) -> Any:
        """Return an array of the library in host memory."""
        return self.array(values)

    def minibatch(self, rows: np.ndarray) -> Any:
        """Return rows from a file in the form that a step needs."""
        return rows

    def wait(self) -> None:
        """Wait until all steps have been taken."""

    def affine(self, x: Any, W: Any, b: Any) -> Any:
        """Return ``x . W + b``."""
        return x @ W + b

    def features(self, network: Network, p: Mapping[str, Any], x: Any) -> Any:
        """Return the features of scaled rows."""
        for (W, b, _), activation in zip(network.layers, network.activations, strict=True):
            x = self.activations[activation](self.affine(x, p[W], p[b]))
        return x

    def cost(self, network: Network, p: Mapping[str, Any], x: Any) -> Any:
        """Return the mean squared error of the reconstruction of scaled rows."""
        y = self.features(network, p, x)
        for i, (W, _, b) in reversed(list(enumerate(network.layers))):
            y = self.affine(y, p[W].T, p[b])
            if i > 0:
                y = self.activations[network.activation](y)
        return ((x - y) ** 2).mean()

    def blocks(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """Yield blocks of rows; a thread reads ahead."""
        blocks = read_blocks(paths)
        with ThreadPoolExecutor(1) as reader:
            pending = reader.submit(next, blocks, None)
            while (block := pending.result()) is not None:
                pending = reader.submit(next, blocks, None)
                yield block

    def step(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        values = arrays(folder)
        step, parameters = self.stepper(network_of(network), lambda rows: rows, values)
        x = self.array(values["x"])
        run = repeat(lambda: step(x), self.wait, warm_up=3)
        result = {name: np.array(array) for name, array in parameters().items()}
        return run, lambda: result

    def encode(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        values = arrays(folder)
        scaler = self.scaler(values["minimum"], values["scale"])
        encode = self.encoder(network_of(network), scaler, values)
        rows = self.on_host(values["rows"])
        run = repeat(lambda: encode(rows))
        return run, lambda: {"features": np.asarray(encode(rows))}

    def fitted_encoder(self, model: dict[str, np.ndarray]) -> Function:
        """Return a function that encodes raw rows with a fitted model."""
        return self.encoder(Network(model["W"].shape), self.scaler(*scaling(model)), model)

    def encode_files(self, folder: Path, shards: str, model: str) -> Prepared:
        with h5py.File(Path(model) / "model.h5") as file:
            fitted = {name: file[name][()] for name in ("minimum", "maximum", "W", "b_hidden", "b_output")}
        encode = self.fitted_encoder(fitted)
        output = folder / f"{type(self).__name__}.h5"
        run = repeat(lambda: self._encode_to(output, encode, h5_files(shards), fitted["W"].shape[1]))

        def result() -> dict[str, np.ndarray]:
            with h5py.File(output) as file:
                return {"features": file["features"][()]}

        return run, result

    def _encode_to(self, output: Path, encode: Function, paths: list[Path], n_features: int) -> None:
        """Encode files into one file of features."""
        n_rows = sum(n for n, _ in shapes(paths))
        with h5py.File(output, "w") as file:
            features = file.create_dataset("features", (n_rows, n_features), np.float32)
            start = 0
            for block in self.blocks(paths):
                features[start : start + len(block)] = encode(block)
                start += len(block)

    def train_files(self, folder: Path, shards: str, epochs: int, batch_size: int, memory: int) -> Prepared:
        paths = h5_files(shards)
        result: dict[str, np.ndarray] = {}

        def work() -> None:
            model = initial_model(self.blocks(paths))
            minimum, scale = scaling(model)
            step, parameters = self.stepper(Network(model["W"].shape), self.scaler(minimum, scale), model)
            rng = np.random.default_rng(1)
            for block in self._blocks_of_epochs(paths, epochs, memory):
                for rows in minibatches(block, batch_size, rng):
                    step(self.minibatch(rows))
            result["cost"] = cost_of(shards, minimum, scale, parameters())

        return repeat(work), lambda: result

    def _blocks_of_epochs(self, paths: list[Path], epochs: int, memory: int) -> Iterator[np.ndarray]:
        """Yield the rows of all epochs: all rows at once if they fit in memory, otherwise in blocks."""
        n_values = sum(n_rows * n_columns for n_rows, n_columns in shapes(paths))
        with h5py.File(paths[0]) as file:
            n_bytes = n_values * file["X"].dtype.itemsize
        resident = []
        if n_bytes < memory // 2:
            resident.append(np.concatenate(list(self.blocks(paths))))
        for _ in range(epochs):
            yield from resident or self.blocks(paths)


def shapes(paths: list[Path]) -> list[tuple[int, int]]:
    """Return the number of rows and columns of each file."""
    found = []
    for path in paths:
        with h5py.File(path) as file:
            found.append(file["X"].shape)
    return found


def read_blocks(paths: list[Path]) -> Iterator[np.ndarray]:
    """Read files block by block."""
    for path in paths:
        with h5py.File(path) as file:
            for start in range(0, len(file["X"]), BLOCK_ROWS):
                yield file["X"][start : start + BLOCK_ROWS]


def minibatches(block: np.ndarray, batch_size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the rows of a block in random order."""
    order = rng.permutation(len(block))
    for start in range(0, len(block), batch_size):
        yield block[order[start : start + batch_size]]


def initial_model(blocks: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the ranges of the columns, and random parameters."""
    ranges = [(block.min(axis=0), block.max(axis=0)) for block in blocks]
    minimum = np.min([low for low, _ in ranges], axis=0).astype(np.float64)
    maximum = np.max([high for _, high in ranges], axis=0).astype(np.float64)
    n_inputs = len(minimum)
    weights = np.random.default_rng(0).normal(size=(n_inputs, 64)) / np.sqrt(n_inputs + 64)
    return {
        "minimum": minimum,
        "maximum": maximum,
        "W": weights.astype(np.float32),
        "b_hidden": np.zeros(64, np.float32),
        "b_output": np.zeros(n_inputs, np.float32),
    }


def scaling(model: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return minimum and scale, float32."""
    span = model["maximum"] - model["minimum"]
    scale = np.divide(1, span, out=np.zeros_like(span), where=span > 0)
    return model["minimum"].astype(np.float32), scale.astype(np.float32)


class Jax(Peer):
    """JAX: jax.jit, with donated buffers for the step."""

    def __init__(self) -> None:
        import jax

        self.jax = jax
        self.about = f"JAX {jax.__version__}"
        self.activations = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "linear": lambda z: z}
        self._state: list[Any] = []  # parameters and velocities

    def array(self, values: np.ndarray) -> Any:
        return self.jax.numpy.array(values)

    def scaler(self, minimum: np.ndarray, scale: np.ndarray) -> Function:
        low = self.array(minimum)
        factor = self.array(scale)
        return lambda rows: (rows.astype(self.jax.numpy.float32) - low) * factor

    def stepper(self, network: Network, scaler: Function, start: Arrays) -> Stepper:
        step = self.jax.jit(partial(self._step, network, scaler), donate_argnums=(0, 1))
        parameters = {name: self.array(start[name]) for name in network.shapes}
        velocities = {name: self.jax.numpy.zeros_like(array) for name, array in parameters.items()}
        self._state = [parameters, velocities]

        def run(rows: Any) -> None:
            self._state = step(*self._state, rows)

        return run, lambda: {name: np.array(array) for name, array in self._state[0].items()}

    def _step(self, network: Network, scaler: Function, p: dict[str, Any], v: dict[str, Any], rows: Any) -> Any:
        """Return the next parameters and velocities."""
        gradient = self.jax.grad(lambda p: self.cost(network, p, scaler(rows)))(p)
        v = {name: MOMENTUM * v[name] - RATE * gradient[name] for name in p}
        return {name: p[name] + v[name] for name in p}, v

    def wait(self) -> None:
        self.jax.block_until_ready(self._state)

    def encoder(self, network: Network, scaler: Function, parameters: Arrays) -> Function:
        p = {name: self.array(parameters[name]) for name in network.shapes}
        encode = self.jax.jit(lambda rows: self.features(network, p, scaler(rows)))
        return lambda rows: encode(rows).block_until_ready()


class Torch(Peer):
    """PyTorch, eager."""

    is_compiled = False
    mode = "default"
    how = "eager"

    def __init__(self) -> None:
        import torch

        self.torch = torch
        self._device = os.environ.get("PEER_DEVICE", "cpu")
        where = torch.cuda.get_device_name() if self._device == "cuda" else "CPU"
        self.about = f"PyTorch {torch.__version__} on {where}, {self.how}"
        self.activations = {"relu": torch.relu, "sigmoid": torch.sigmoid, "linear": lambda z: z}

    def array(self, values: np.ndarray) -> Any:
        return self.torch.from_numpy(values).to(self._device)

    def on_host(self, values: np.ndarray) -> Any:
        return self.torch.from_numpy(values)

    def minibatch(self, rows: np.ndarray) -> Any:
        return self.array(rows)

    def affine(self, x: Any, W: Any, b: Any) -> Any:
        # The compiler fuses the operations itself. With PyTorch 2.13 restricted to AVX2, addmm returned wrong numbers.
        return super().affine(x, W, b) if self.is_compiled else self.torch.addmm(b, x, W)

    def scaler(self, minimum: np.ndarray, scale: np.ndarray) -> Function:
        low = self.array(minimum)
        factor = self.array(scale)
        return lambda rows: (rows.float() - low) * factor

    def stepper(self, network: Network, scaler: Function, start: Arrays) -> Stepper:
        p = {name: self.torch.tensor(start[name], device=self._device, requires_grad=True) for name in network.shapes}
        optimizer = self.torch.optim.SGD(p.values(), lr=RATE, momentum=MOMENTUM, fused=True)
        cost = self._maybe_compiled(lambda rows: self.cost(network, p, scaler(rows)))

        def step(rows: Any) -> None:
            optimizer.zero_grad()
            cost(rows).backward()
            optimizer.step()

        return step, lambda: {name: array.detach().cpu().numpy() for name, array in p.items()}

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
        return self.torch.compile(function, mode=self.mode) if self.is_compiled else function

    def blocks(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """Yield blocks of rows; two processes of a DataLoader read ahead."""
        places = [(path, start) for path in paths for start in range(0, shapes([path])[0][0], BLOCK_ROWS)]

        def read(place: tuple[Path, int]) -> Any:
            path, start = place
            with h5py.File(path) as file:
                return self.torch.from_numpy(file["X"][start : start + BLOCK_ROWS])

        loader = self.torch.utils.data.DataLoader(places, batch_size=None, num_workers=2, collate_fn=read)
        for block in loader:
            yield block.numpy()

    def square(self, folder: Path, n: int) -> Prepared:
        """Multiply two large square matrices."""
        a = self.torch.rand((n, n), device=self._device)
        return repeat(lambda: self.torch.mm(a, a), self.wait), dict


class TorchCompile(Torch):
    """PyTorch, compiled."""

    is_compiled = True
    how = "torch.compile"


class TorchGraphs(TorchCompile):
    """PyTorch, compiled, and on a card recorded as CUDA graphs."""

    mode = "reduce-overhead"
    how = "torch.compile, CUDA graphs"


class Sklearn(Peer):
    """scikit-learn: MinMaxScaler and PCA with the same number of features, another model with similar work."""

    def __init__(self) -> None:
        import sklearn

        self.about = f"scikit-learn {sklearn.__version__}"

    def fitted_encoder(self, model: dict[str, np.ndarray]) -> Function:
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import MinMaxScaler

        scaler = MinMaxScaler().fit(np.stack([model["minimum"], model["maximum"]]).astype(np.float32))
        sample = np.random.default_rng(0).random((2000, len(model["minimum"])), dtype=np.float32)
        pca = PCA(model["W"].shape[1]).fit(sample)
        return lambda rows: pca.transform(scaler.transform(rows.astype(np.float32)))
