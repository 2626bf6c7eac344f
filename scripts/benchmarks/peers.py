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
from scripts.benchmarks.given import BLOCK_ROWS, MOMENTUM, RATE, Prepared, arrays, cost_of, h5_files, network_of


class Peer:
    """What is the same whatever the library: subclasses say how a block is encoded and a step is taken."""

    about = ""
    activate: Mapping[str, Callable[[Any], Any]]

    def affine(self, x: Any, W: Any, b: Any) -> Any:
        """``x . W + b``, as the library has it."""
        return x @ W + b

    def features(self, network: Network, p: Mapping[str, Any], x: Any) -> Any:
        """Of scaled rows."""
        for (W, b, _), activation in zip(network.layers, network.activations, strict=True):
            x = self.activate[activation](self.affine(x, p[W], p[b]))
        return x

    def cost(self, network: Network, p: Mapping[str, Any], x: Any) -> Any:
        """Mean squared error of the reconstruction of scaled rows."""
        y = self.features(network, p, x)
        for i, (W, _, b) in reversed(list(enumerate(network.layers))):
            y = self.affine(y, p[W].T, p[b])
            y = self.activate[network.activation](y) if i > 0 else y
        return ((x - y) ** 2).mean()

    def encoder(self, model: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        """A function of a block of raw rows to their features."""
        raise NotImplementedError

    def trainer(
        self, model: dict[str, np.ndarray]
    ) -> tuple[Callable[[np.ndarray], object], Callable[[], dict[str, np.ndarray]]]:
        """A function that takes a step on a minibatch of raw rows, and one that returns the parameters."""
        raise NotImplementedError

    def blocks(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """Blocks of rows, read one ahead by a thread."""
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

    def encode_files(self, folder: Path, shards: str, model: str) -> Prepared:
        import h5py

        with h5py.File(Path(model) / "model.h5") as file:
            fitted = {name: file[name][()] for name in ("minimum", "maximum", "W", "b_hidden", "b_output")}
        encode = self.encoder(fitted)
        output = folder / f"{type(self).__name__}.h5"
        paths = h5_files(Path(shards))

        def run(n: int) -> None:
            for _ in range(n):
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

        run(1)
        return run, result

    def train_files(self, folder: Path, shards: str, epochs: int, batch_size: int, memory: int) -> Prepared:
        paths = h5_files(Path(shards))
        last: list[np.ndarray] = []

        def run(n: int) -> None:
            for _ in range(n):
                last[:] = self._fit(paths, epochs, batch_size, memory)

        run(1)
        return run, lambda: {"cost": cost_of(Path(shards), *last)}

    def _fit(
        self, paths: list[Path], epochs: int, batch_size: int, memory: int
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        ranges = [(block.min(axis=0), block.max(axis=0)) for block in self.blocks(paths)]
        minimum, maximum = np.min([low for low, _ in ranges], axis=0), np.max([high for _, high in ranges], axis=0)
        n_inputs, rng = len(minimum), np.random.default_rng(0)
        model = {
            "minimum": minimum.astype(np.float64),
            "maximum": maximum.astype(np.float64),
            "W": (rng.normal(size=(n_inputs, 64)) / np.sqrt(n_inputs + 64)).astype(np.float32),
            "b_hidden": np.zeros(64, np.float32),
            "b_output": np.zeros(n_inputs, np.float32),
        }
        step, weights = self.trainer(model)
        blocks = list(self.blocks(paths)) if total_bytes(paths) < memory // 2 else None
        if blocks is not None:
            rows = np.concatenate(blocks)
            for _ in range(epochs):
                order = rng.permutation(len(rows))
                for start in range(0, len(rows), batch_size):
                    step(rows[order[start : start + batch_size]])
            return (*scaling(model), weights())
        for _ in range(epochs):
            for block in self.blocks(paths):
                order = rng.permutation(len(block))
                for start in range(0, len(block), batch_size):
                    step(block[order[start : start + batch_size]])
        return (*scaling(model), weights())


def total_bytes(paths: list[Path]) -> int:
    import h5py

    sizes = []
    for path in paths:
        with h5py.File(path) as file:
            sizes.append(file["X"].size * file["X"].dtype.itemsize)
    return sum(sizes)


def scaling(model: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Minimum and scale, float32."""
    span = model["maximum"] - model["minimum"]
    scale = np.divide(1, span, out=np.zeros_like(span), where=span > 0)
    return model["minimum"].astype(np.float32), scale.astype(np.float32)


class Jax(Peer):
    """jax.jit, with donated buffers for the step."""

    def __init__(self) -> None:
        import jax

        self.about = f"JAX {jax.__version__}"
        self.activate = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "linear": lambda z: z}

    def _step(self, network: Network, prepare: Callable[[Any], Any], start: Mapping[str, np.ndarray]) -> Any:
        """A function that takes a step on rows, and what it changes: parameters and velocities."""
        import jax
        import jax.numpy as jnp

        def step(p: dict[str, Any], v: dict[str, Any], rows: Any) -> Any:
            gradient = jax.grad(lambda p: self.cost(network, p, prepare(rows)))(p)
            v = {name: MOMENTUM * v[name] - RATE * gradient[name] for name in p}
            return {name: p[name] + v[name] for name in p}, v

        jitted = jax.jit(step, donate_argnums=(0, 1))
        state = [{name: jnp.array(start[name]) for name in network.shapes}]
        state.append({name: jnp.zeros_like(array) for name, array in state[0].items()})

        def run(rows: Any) -> None:
            state[:] = jitted(*state, rows)

        return run, state

    def step(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        import jax
        import jax.numpy as jnp

        given = arrays(folder)
        step, state = self._step(network_of(network), lambda x: x, given)
        x = jnp.array(given["x"])

        def run(n: int) -> None:
            for _ in range(n):
                step(x)
            jax.block_until_ready(state)

        run(3)
        found = {name: np.array(array) for name, array in state[0].items()}
        return run, lambda: found

    def trainer(
        self, model: dict[str, np.ndarray]
    ) -> tuple[Callable[[np.ndarray], object], Callable[[], dict[str, np.ndarray]]]:
        import jax.numpy as jnp

        minimum, scale = map(jnp.array, scaling(model))
        step, state = self._step(
            Network(model["W"].shape), lambda rows: (rows.astype(jnp.float32) - minimum) * scale, model
        )
        return step, lambda: {name: np.array(array) for name, array in state[0].items()}

    def _encoder(self, network: Network, given: Mapping[str, np.ndarray], minimum: Any, scale: Any) -> Any:
        import jax
        import jax.numpy as jnp

        p = {name: jnp.array(given[name]) for name in network.shapes}
        low, s = jnp.array(minimum), jnp.array(scale)
        return jax.jit(lambda rows: self.features(network, p, (rows.astype(jnp.float32) - low) * s))

    def encode(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        import jax.numpy as jnp

        given = arrays(folder)
        encode = self._encoder(network_of(network), given, given["minimum"], given["scale"])
        rows = jnp.array(given["rows"])
        found: list[Any] = []

        def run(n: int) -> None:
            for _ in range(n):
                found[:] = [encode(rows)]
                found[0].block_until_ready()

        run(1)
        return run, lambda: {"features": np.asarray(found[0])}

    def encoder(self, model: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        encode = self._encoder(Network(model["W"].shape), model, *scaling(model))
        return lambda rows: np.asarray(encode(rows))


class Torch(Peer):
    """PyTorch, eager."""

    compiled, mode, how = False, "default", "eager"

    def __init__(self) -> None:
        import torch

        self._device = os.environ.get("PEER_DEVICE", "cpu")
        where = torch.cuda.get_device_name() if self._device == "cuda" else "CPU"
        self.about = f"PyTorch {torch.__version__} on {where}, {self.how}"
        self.activate = {"relu": torch.relu, "sigmoid": torch.sigmoid, "linear": lambda z: z}

    def affine(self, x: Any, W: Any, b: Any) -> Any:
        import torch

        # The compiler fuses what it can by itself; PyTorch 2.13 kept to AVX2 gave wrong numbers for addmm.
        return super().affine(x, W, b) if self.compiled else torch.addmm(b, x, W)

    def _maybe_compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import torch

        return torch.compile(function, mode=self.mode) if self.compiled else function

    def _step(self, network: Network, prepare: Callable[[Any], Any], start: Mapping[str, np.ndarray]) -> Any:
        """A function that takes a step on rows, and the parameters that it changes."""
        import torch

        p = {name: torch.tensor(start[name], device=self._device, requires_grad=True) for name in network.shapes}
        optimizer = torch.optim.SGD(p.values(), lr=RATE, momentum=MOMENTUM, fused=True)
        cost = self._maybe_compiled(lambda rows: self.cost(network, p, prepare(rows)))

        def step(rows: Any) -> None:
            optimizer.zero_grad()
            cost(rows).backward()
            optimizer.step()

        return step, p

    def step(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        import torch

        given = arrays(folder)
        step, p = self._step(network_of(network), lambda x: x, given)
        x = torch.tensor(given["x"], device=self._device)

        def run(n: int) -> None:
            for _ in range(n):
                step(x)
            if self._device == "cuda":
                torch.cuda.synchronize()

        run(3)
        found = {name: array.detach().cpu().numpy().copy() for name, array in p.items()}
        return run, lambda: found

    def trainer(
        self, model: dict[str, np.ndarray]
    ) -> tuple[Callable[[np.ndarray], object], Callable[[], dict[str, np.ndarray]]]:
        import torch

        minimum, scale = (torch.tensor(array, device=self._device) for array in scaling(model))
        step, p = self._step(Network(model["W"].shape), lambda rows: (rows.float() - minimum) * scale, model)

        def weights() -> dict[str, np.ndarray]:
            return {name: array.detach().cpu().numpy() for name, array in p.items()}

        return lambda rows: step(torch.from_numpy(rows).to(self._device)), weights

    def _encoder(self, network: Network, given: Mapping[str, np.ndarray], minimum: Any, scale: Any) -> Any:
        import torch

        p = {name: torch.tensor(given[name], device=self._device) for name in network.shapes}
        low, s = (torch.tensor(array, device=self._device) for array in (minimum, scale))
        encode = self._maybe_compiled(lambda rows: self.features(network, p, (rows.float() - low) * s))

        def run(rows: Any) -> Any:
            with torch.inference_mode():
                return encode(rows.to(self._device)).cpu()

        return run

    def encode(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        import torch

        given = arrays(folder)
        encode = self._encoder(network_of(network), given, given["minimum"], given["scale"])
        rows = torch.tensor(given["rows"])
        found: list[Any] = []

        def run(n: int) -> None:
            for _ in range(n):
                found[:] = [encode(rows)]

        run(1)
        return run, lambda: {"features": found[0].numpy()}

    def encoder(self, model: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        import torch

        encode = self._encoder(Network(model["W"].shape), model, *scaling(model))
        return lambda rows: encode(torch.from_numpy(rows)).numpy()

    def blocks(self, paths: list[Path]) -> Iterator[np.ndarray]:
        """Blocks of rows from a DataLoader's worker processes."""
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
        import torch

        a, b = (torch.rand((n, n), device=self._device) for _ in range(2))

        def run(times: int) -> None:
            for _ in range(times):
                torch.mm(a, b)
            if self._device == "cuda":
                torch.cuda.synchronize()

        run(1)
        return run, dict


class TorchCompile(Torch):
    """PyTorch, compiled."""

    compiled, how = True, "torch.compile"


class TorchGraphs(TorchCompile):
    """PyTorch, compiled, and on a card recorded as CUDA graphs, which it launches as a whole."""

    mode, how = "reduce-overhead", "torch.compile, CUDA graphs"


class Sklearn(Peer):
    """What many would take instead: MinMaxScaler and PCA of the same width. Other numbers, the same amount of work."""

    def __init__(self) -> None:
        import sklearn

        self.about = f"scikit-learn {sklearn.__version__}"

    def encoder(self, model: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import MinMaxScaler

        scaler = MinMaxScaler().fit(np.stack([model["minimum"], model["maximum"]]).astype(np.float32))
        sample = np.random.default_rng(0).random((2000, len(model["minimum"])), dtype=np.float32)
        pca = PCA(model["W"].shape[1]).fit(sample)
        return lambda rows: pca.transform(scaler.transform(rows.astype(np.float32)))
