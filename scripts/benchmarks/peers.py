"""The peers of the races: what a user would write with JAX, with PyTorch, with scikit-learn."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Queue
from typing import Any

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
    repeated,
)

Arrays = Mapping[str, np.ndarray]
Scale = Callable[[Any], Any]
Stepper = tuple[Callable[[Any], Any], Callable[[], dict[str, np.ndarray]]]


class Peer:
    """The code that all libraries share.

    A library has ``array``, ``scale``, ``stepper`` and ``encoding``, and ``wait`` if it computes in the background.
    """

    about = ""
    activate: Mapping[str, Callable[[Any], Any]]

    def array(self, values: np.ndarray) -> Any:
        """Return an array of the library on its device."""
        raise NotImplementedError

    def on_host(self, values: np.ndarray) -> Any:
        """Return an array of the library in host memory."""
        return self.array(values)

    def minibatch(self, rows: np.ndarray) -> Any:
        """Return rows from a file as a step takes them."""
        return rows

    def scale(self, minimum: np.ndarray, scale: np.ndarray) -> Scale:
        """Return a function that scales raw rows."""
        raise NotImplementedError

    def stepper(self, network: Network, scale: Scale, start: Arrays) -> Stepper:
        """Return a function that takes a step on raw rows, and one that returns the parameters."""
        raise NotImplementedError

    def encoding(self, network: Network, scale: Scale, parameters: Arrays) -> Callable[[Any], Any]:
        """Return a function that encodes raw rows."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until all steps have been taken."""

    def affine(self, x: Any, W: Any, b: Any) -> Any:
        """Return ``x . W + b``."""
        return x @ W + b

    def features(self, network: Network, p: Mapping[str, Any], x: Any) -> Any:
        """Return the features of scaled rows."""
        for (W, b, _), activation in zip(network.layers, network.activations, strict=True):
            x = self.activate[activation](self.affine(x, p[W], p[b]))
        return x

    def cost(self, network: Network, p: Mapping[str, Any], x: Any) -> Any:
        """Return the mean squared error of the reconstruction of scaled rows."""
        y = self.features(network, p, x)
        for i, (W, _, b) in reversed(list(enumerate(network.layers))):
            y = self.affine(y, p[W].T, p[b])
            if i > 0:
                y = self.activate[network.activation](y)
        return ((x - y) ** 2).mean()

    def blocks(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """Yield blocks of rows, read one ahead by a thread."""
        import h5py

        queue: Queue[np.ndarray | None] = Queue(maxsize=1)

        def read() -> None:
            for path in paths:
                with h5py.File(path) as file:
                    for start in range(0, file["X"].shape[0], BLOCK_ROWS):
                        queue.put(file["X"][start : start + BLOCK_ROWS])
            queue.put(None)

        thread = threading.Thread(target=read)
        thread.start()
        while (block := queue.get()) is not None:
            yield block
        thread.join()

    # -- the cases ---------------------------------------------------------------------------------------------------

    def step(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        given = arrays(folder)
        step, parameters = self.stepper(network_of(network), lambda rows: rows, given)
        x = self.array(given["x"])
        run = repeated(lambda: step(x), self.wait)
        run(3)
        found = {name: np.array(array) for name, array in parameters().items()}
        return run, lambda: found

    def encode(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        given = arrays(folder)
        encode = self.encoding(network_of(network), self.scale(given["minimum"], given["scale"]), given)
        rows = self.on_host(given["rows"])
        found: list[Any] = [None]

        def work() -> None:
            found[0] = encode(rows)

        run = repeated(work)
        run(1)
        return run, lambda: {"features": np.asarray(found[0])}

    def encoder(self, model: dict[str, np.ndarray]) -> Callable[[np.ndarray], Any]:
        """Return a function that encodes blocks of raw rows with a fitted model."""
        return self.encoding(Network(model["W"].shape), self.scale(*scaling(model)), model)

    def encode_files(self, folder: Path, shards: str, model: str) -> Prepared:
        import h5py

        with h5py.File(Path(model) / "model.h5") as file:
            fitted = {name: file[name][()] for name in ("minimum", "maximum", "W", "b_hidden", "b_output")}
        encode = self.encoder(fitted)
        output = folder / f"{type(self).__name__}.h5"
        paths = h5_files(Path(shards))

        def work() -> None:
            with h5py.File(output, "w") as file:
                n_rows = sum(h5py.File(path)["X"].shape[0] for path in paths)
                features = file.create_dataset("features", (n_rows, fitted["W"].shape[1]), np.float32)
                start = 0
                for block in self.blocks(paths):
                    features[start : start + len(block)] = encode(block)
                    start += len(block)

        def result() -> dict[str, np.ndarray]:
            with h5py.File(output) as file:
                return {"features": file["features"][()]}

        run = repeated(work)
        run(1)
        return run, result

    def train_files(self, folder: Path, shards: str, epochs: int, batch_size: int, memory: int) -> Prepared:
        paths = h5_files(Path(shards))
        costs: list[np.ndarray] = [np.array(np.nan)]

        def work() -> None:
            minimum, scale, parameters = self._fit(paths, epochs, batch_size, memory)
            costs[0] = cost_of(Path(shards), minimum, scale, parameters)

        run = repeated(work)
        run(1)
        return run, lambda: {"cost": costs[0]}

    def _fit(
        self, paths: list[Path], epochs: int, batch_size: int, memory: int
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Train, and return minimum, scale and parameters."""
        model = self._untrained(paths)
        low, factor = scaling(model)
        step, parameters = self.stepper(Network(model["W"].shape), self.scale(low, factor), model)
        rng = np.random.default_rng(1)
        resident: list[np.ndarray] = []
        if total_bytes(paths) < memory // 2:
            resident.append(np.concatenate(list(self.blocks(paths))))
        for _ in range(epochs):
            for block in resident or self.blocks(paths):
                order = rng.permutation(len(block))
                for start in range(0, len(block), batch_size):
                    step(self.minibatch(block[order[start : start + batch_size]]))
        return low, factor, parameters()

    def _untrained(self, paths: list[Path]) -> dict[str, np.ndarray]:
        """Return the ranges of the columns, and random parameters."""
        ranges = [(block.min(axis=0), block.max(axis=0)) for block in self.blocks(paths)]
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


def total_bytes(paths: list[Path]) -> int:
    import h5py

    n_bytes = 0
    for path in paths:
        with h5py.File(path) as file:
            n_bytes += file["X"].size * file["X"].dtype.itemsize
    return n_bytes


def scaling(model: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return minimum and scale, float32."""
    span = model["maximum"] - model["minimum"]
    scale = np.divide(1, span, out=np.zeros_like(span), where=span > 0)
    return model["minimum"].astype(np.float32), scale.astype(np.float32)


class Jax(Peer):
    """jax.jit, with donated buffers for the step."""

    def __init__(self) -> None:
        import jax

        self.jax = jax
        self.about = f"JAX {jax.__version__}"
        self.activate = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "linear": lambda z: z}
        self._state: list[Any] = []  # parameters and velocities of the last stepper

    def array(self, values: np.ndarray) -> Any:
        return self.jax.numpy.array(values)

    def stepper(self, network: Network, scale: Scale, start: Arrays) -> Stepper:
        def step(p: dict[str, Any], v: dict[str, Any], rows: Any) -> Any:
            gradient = self.jax.grad(lambda p: self.cost(network, p, scale(rows)))(p)
            v = {name: MOMENTUM * v[name] - RATE * gradient[name] for name in p}
            return {name: p[name] + v[name] for name in p}, v

        jitted = self.jax.jit(step, donate_argnums=(0, 1))
        parameters = {name: self.jax.numpy.array(start[name]) for name in network.shapes}
        state = [parameters, {name: self.jax.numpy.zeros_like(array) for name, array in parameters.items()}]
        self._state = state

        def run(rows: Any) -> None:
            state[:] = jitted(state[0], state[1], rows)

        return run, lambda: {name: np.array(array) for name, array in state[0].items()}

    def wait(self) -> None:
        self.jax.block_until_ready(self._state)

    def scale(self, minimum: np.ndarray, scale: np.ndarray) -> Scale:
        low = self.jax.numpy.array(minimum)
        factor = self.jax.numpy.array(scale)
        return lambda rows: (rows.astype(self.jax.numpy.float32) - low) * factor

    def encoding(self, network: Network, scale: Scale, parameters: Arrays) -> Callable[[Any], Any]:
        p = {name: self.array(parameters[name]) for name in network.shapes}
        encode = self.jax.jit(lambda rows: self.features(network, p, scale(rows)))
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
        self.activate = {"relu": torch.relu, "sigmoid": torch.sigmoid, "linear": lambda z: z}

    def array(self, values: np.ndarray) -> Any:
        return self.torch.from_numpy(values).to(self._device)

    def on_host(self, values: np.ndarray) -> Any:
        return self.torch.from_numpy(values)

    def minibatch(self, rows: np.ndarray) -> Any:
        return self.array(rows)

    def affine(self, x: Any, W: Any, b: Any) -> Any:
        # The compiler fuses what it can by itself; PyTorch 2.13 kept to AVX2 gave wrong numbers for addmm.
        return super().affine(x, W, b) if self.is_compiled else self.torch.addmm(b, x, W)

    def _maybe_compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.torch.compile(function, mode=self.mode) if self.is_compiled else function

    def stepper(self, network: Network, scale: Scale, start: Arrays) -> Stepper:
        p = {name: self.torch.tensor(start[name], device=self._device, requires_grad=True) for name in network.shapes}
        optimizer = self.torch.optim.SGD(p.values(), lr=RATE, momentum=MOMENTUM, fused=True)
        cost = self._maybe_compiled(lambda rows: self.cost(network, p, scale(rows)))

        def step(rows: Any) -> None:
            optimizer.zero_grad()
            cost(rows).backward()
            optimizer.step()

        return step, lambda: {name: array.detach().cpu().numpy() for name, array in p.items()}

    def wait(self) -> None:
        if self._device == "cuda":
            self.torch.cuda.synchronize()

    def scale(self, minimum: np.ndarray, scale: np.ndarray) -> Scale:
        low = self.array(minimum)
        factor = self.array(scale)
        return lambda rows: (rows.float() - low) * factor

    def encoding(self, network: Network, scale: Scale, parameters: Arrays) -> Callable[[Any], Any]:
        p = {name: self.array(parameters[name]) for name in network.shapes}
        encode = self._maybe_compiled(lambda rows: self.features(network, p, scale(rows)))

        def run(rows: Any) -> Any:
            with self.torch.inference_mode():
                return encode(self.torch.as_tensor(rows).to(self._device)).cpu()

        return run

    def blocks(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """Yield blocks of rows from a DataLoader's worker processes."""
        import h5py
        from torch.utils.data import DataLoader, Dataset

        class Blocks(Dataset):  # type: ignore[type-arg]
            def __init__(self) -> None:
                self.places: list[tuple[Path, int]] = []
                for path in paths:
                    with h5py.File(path) as file:
                        self.places += [(path, start) for start in range(0, file["X"].shape[0], BLOCK_ROWS)]

            def __len__(self) -> int:
                return len(self.places)

            def __getitem__(self, i: int) -> np.ndarray:
                path, start = self.places[i]
                with h5py.File(path) as file:
                    return np.asarray(file["X"][start : start + BLOCK_ROWS])

        for block in DataLoader(Blocks(), batch_size=None, num_workers=2):
            yield block.numpy()

    def square(self, folder: Path, n: int) -> Prepared:
        """The device's own SGEMM."""
        a = self.torch.rand((n, n), device=self._device)
        b = self.torch.rand((n, n), device=self._device)
        run = repeated(lambda: self.torch.mm(a, b), self.wait)
        run(1)
        return run, dict


class TorchCompile(Torch):
    """PyTorch, compiled."""

    is_compiled = True
    how = "torch.compile"


class TorchGraphs(TorchCompile):
    """PyTorch, compiled, and on a card recorded as CUDA graphs, which it launches as a whole."""

    mode = "reduce-overhead"
    how = "torch.compile, CUDA graphs"


class Sklearn(Peer):
    """What many would use instead: MinMaxScaler and PCA of the same width. Other numbers, the same amount of work."""

    def __init__(self) -> None:
        import sklearn

        self.about = f"scikit-learn {sklearn.__version__}"

    def encoder(self, model: dict[str, np.ndarray]) -> Callable[[np.ndarray], Any]:
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import MinMaxScaler

        scaler = MinMaxScaler().fit(np.stack([model["minimum"], model["maximum"]]).astype(np.float32))
        sample = np.random.default_rng(0).random((2000, len(model["minimum"])), dtype=np.float32)
        pca = PCA(model["W"].shape[1]).fit(sample)
        return lambda rows: pca.transform(scaler.transform(rows.astype(np.float32)))
