"""The contestants of scripts/bench.py: the same work as a user would write it with each library.

    python scripts/contestants.py ours|blas|jax|torch|torch-compile|sklearn

Started by scripts/bench.py in the virtual environment that has the library, it takes one JSON request a line on
standard input and answers each with one line. `prepare` names a case and where its input lies, and leaves the result
beside it, so that all contestants can be held against each other; `time` does the work again so many times and answers
the seconds. PEER_DEVICE=cuda in the environment has PyTorch work there.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np

# What a case gives: a callable that does its work n times, and one that returns the result as arrays. The first one may
# return the seconds that count, if it does more than is asked for.
Prepared = tuple[Callable[[int], float | None], Callable[[], dict[str, np.ndarray]]]

MOMENTUM, RATE = 0.9, 0.1
BLOCK_ROWS, PART_ROWS = 8192, 65536


def main() -> int:
    """Serve requests until standard input closes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes elsewhere
    contestant = CONTESTANTS[sys.argv[1]]()
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
            start = time.perf_counter()
            counted = run(request["times"])
            seconds = time.perf_counter() - start if counted is None else counted
            answer = {"seconds": seconds}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def arrays(folder: Path) -> dict[str, np.ndarray]:
    """The case's input."""
    with np.load(folder / "input.npz") as file:
        return {name: file[name] for name in file.files}


def cost_of(shards: Path, minimum: np.ndarray, scale: np.ndarray, p: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean squared error of a trained model on some rows, in scaled units."""
    import h5py

    with h5py.File(h5_files(shards)[0]) as file:
        x = (file["X"][:4096].astype(np.float32) - minimum) * scale
    h = 1 / (1 + np.exp(-(x @ p["W"] + p["b_hidden"])))
    return np.array(np.mean((h @ p["W"].T + p["b_output"] - x) ** 2))


def h5_files(folder: Path) -> list[Path]:
    return sorted(Path(folder).glob("*.h5"))


# -- shardpress --------------------------------------------------------------------------------------------------


class Ours:
    """This project."""

    def __init__(self) -> None:
        from kernels import backend

        self.about = f"shardpress on {backend.start()}"

    def step(self, folder: Path, n_inputs: int, n_features: int) -> Prepared:
        from kernels.autoencoder import Autoencoder
        from kernels.network import Network
        from kernels.step import TrainingStep
        from kernels.updates import Rule

        given = arrays(folder)
        autoencoder = Autoencoder(Network((n_inputs, n_features)))
        autoencoder.set_parameters({name: given[name] for name in ("W", "b_hidden", "b_output")})
        step = TrainingStep(autoencoder, Rule("momentum", MOMENTUM), np.dtype(np.float32))
        step.set_learning_rate(RATE)
        x = given["x"]

        def run(n: int) -> None:
            for _ in range(n):
                step(x)
            autoencoder.shared["b_hidden"].get_value()  # which on a device waits for all steps

        run(3)
        found = autoencoder.parameters()
        return run, lambda: found

    def encode(self, folder: Path, n_inputs: int, n_features: int) -> Prepared:
        from kernels.autoencoder import Autoencoder
        from kernels.network import Network

        given = arrays(folder)
        autoencoder = Autoencoder(Network((n_inputs, n_features)), given["minimum"], given["scale"])
        autoencoder.set_parameters({name: given[name] for name in ("W", "b_hidden", "b_output")})
        rows, out = given["rows"], np.empty((len(given["rows"]), n_features), dtype=np.float32)

        def run(n: int) -> None:
            for _ in range(n):
                autoencoder.encode(rows, out)

        run(1)
        return run, lambda: {"features": out}

    def encode_files(self, folder: Path, shards: str, model: str) -> Prepared:
        from pipeline.features import open_features
        from pipeline.run.stages import run as extract
        from pipeline.settings.config import Config

        output = folder / "ours"

        def run(n: int) -> None:
            for _ in range(n):
                shutil.rmtree(output, ignore_errors=True)
                extract(Config(input=(shards,), model=model, output=str(output)), ["bench.py"])

        run(1)
        return run, lambda: {"features": np.asarray(open_features(output).features.compute())}

    def encode_files_barely(self, folder: Path, shards: str, model: str) -> Prepared:
        """Read, encode, hash, write, sync, and nothing else of a run: what no pipeline around this encoder can beat."""
        from concurrent.futures import ThreadPoolExecutor

        from kernels.autoencoder import Autoencoder
        from pipeline.encoding.partfile import PartMemory
        from pipeline.formats import digest
        from pipeline.model import load_model
        from pipeline.output.disk import Disk, publish
        from pipeline.shards.open import open_shards
        from pipeline.shards.rows import read
        from pipeline.shards.shard import Block, blocks

        fitted, found = load_model(Path(model)), open_shards([shards])
        minimum, scale = fitted.scaler.arrays(np.dtype(found[0].dtype))
        autoencoder = Autoencoder(fitted.network, minimum, scale)
        autoencoder.set_parameters(fitted.parameters)
        output, n_cores, kept = folder / "bare", len(os.sched_getaffinity(0)), threading.local()
        parts, turns = list(blocks(found, PART_ROWS)), threading.Semaphore(n_cores)

        def encode(i: int) -> None:
            if not hasattr(kept, "rows"):
                kept.rows = np.empty((BLOCK_ROWS, fitted.n_inputs), dtype=found[0].dtype)
                kept.memory = PartMemory(PART_ROWS, fitted.n_features)
            part = parts[i]
            features = kept.memory.features(len(part))
            with turns:
                for first in range(part.start, part.stop, BLOCK_ROWS):
                    block = Block(part.shard, first, min(first + BLOCK_ROWS, part.stop))
                    rows = read(block, kept.rows[: len(block)])
                    autoencoder.encode(rows, features[first - part.start :][: len(block)])
            data = features.reshape(-1).view(np.uint8).data
            digest([data])
            publish(Disk(), output / str(i), data)

        def run(n: int) -> None:
            for _ in range(n):
                shutil.rmtree(output, ignore_errors=True)
                output.mkdir()
                with ThreadPoolExecutor(n_cores + 2) as pool:
                    list(pool.map(encode, range(len(parts))))

        def result() -> dict[str, np.ndarray]:
            return {"features": np.concatenate([np.fromfile(output / str(i), np.float32) for i in range(len(parts))])}

        run(1)
        return run, result

    def train_files(self, folder: Path, shards: str, epochs: int, batch_size: int, memory: int) -> Prepared:
        from pipeline.model import load_model
        from pipeline.run.stages import run as extract
        from pipeline.settings.config import Config

        output = folder / "ours"
        config = Config(
            input=(shards,), output=str(output), epochs=epochs, batch_size=batch_size, optimizer="momentum",
            schedule="constant", biases="zero", learning_rate=RATE, validation_fraction=0.0, memory_budget=memory,
        )  # fmt: skip

        def run(n: int) -> float:
            counted = 0.0
            for _ in range(n):
                shutil.rmtree(output, ignore_errors=True)
                seconds = extract(config, ["bench.py"]).seconds
                counted += seconds["scan"] + seconds["training"]  # the peers do not encode
            return counted

        def result() -> dict[str, np.ndarray]:
            model = load_model(output)
            minimum, scale = model.scaler.arrays(np.dtype(np.float32))
            return {"cost": cost_of(Path(shards), minimum, scale, model.parameters)}

        run(1)
        return run, result


class Blas:
    """The products of the same work through BLAS alone."""

    def __init__(self) -> None:
        import scipy_openblas32

        library = ctypes.CDLL(str(Path(scipy_openblas32.get_lib_dir()) / "libscipy_openblas.so"))
        library.scipy_openblas_get_corename.restype = ctypes.c_char_p
        self.about = f"OpenBLAS, kernels for {library.scipy_openblas_get_corename().decode()}"
        self._sgemm = library.scipy_cblas_sgemm
        pointer = ctypes.POINTER(ctypes.c_float)
        size = ctypes.c_int
        self._sgemm.argtypes = [size] * 6 + [
            ctypes.c_float,
            pointer,
            size,
            pointer,
            size,
            ctypes.c_float,
            pointer,
            size,
        ]

    def product(
        self, a: np.ndarray, b: np.ndarray, out: np.ndarray, turned_a: bool = False, turned_b: bool = False
    ) -> None:
        """``out = a . b``, with either of them transposed."""
        pointers = [m.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for m in (a, b, out)]
        inner = a.shape[0] if turned_a else a.shape[1]
        self._sgemm(
            101, 112 if turned_a else 111, 112 if turned_b else 111, *out.shape, inner, 1.0, pointers[0], a.shape[1],
            pointers[1], b.shape[1], 0.0, pointers[2], out.shape[1],
        )  # fmt: skip

    def step(self, folder: Path, n_inputs: int, n_features: int) -> Prepared:
        given = arrays(folder)
        x, W = given["x"], given["W"]
        h = np.empty((len(x), n_features), dtype=np.float32)
        y, dh, dW = np.empty_like(x), np.empty_like(h), np.empty_like(W)

        def run(n: int) -> None:
            for _ in range(n):
                self.product(x, W, h)
                self.product(h, W, y, turned_b=True)
                self.product(y, W, dh)
                self.product(x, dh, dW, turned_a=True)
                self.product(y, h, dW, turned_a=True)

        run(1)
        return run, dict

    def encode(self, folder: Path, n_inputs: int, n_features: int) -> Prepared:
        given = arrays(folder)
        x, W = given["rows"].astype(np.float32), given["W"]
        h = np.empty((len(x), n_features), dtype=np.float32)

        def run(n: int) -> None:
            for _ in range(n):
                self.product(x, W, h)

        run(1)
        return run, dict

    def square(self, folder: Path, n: int) -> Prepared:
        a, b = (np.random.default_rng(i).random((n, n), dtype=np.float32) for i in range(2))
        out = np.empty_like(a)

        def run(times: int) -> None:
            for _ in range(times):
                self.product(a, b, out)

        run(1)
        return run, dict


# -- the peers ---------------------------------------------------------------------------------------------------


class Peer:
    """Loops that are the same whatever the library: subclasses say how a block is encoded and a step is taken."""

    about = ""

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

    def _step(self) -> Callable[..., Any]:
        import jax
        import jax.numpy as jnp

        def cost(p: dict[str, Any], x: Any) -> Any:
            h = jax.nn.sigmoid(x @ p["W"] + p["b_hidden"])
            return jnp.mean((x - (h @ p["W"].T + p["b_output"])) ** 2)

        def step(p: dict[str, Any], v: dict[str, Any], x: Any) -> Any:
            gradient = jax.grad(cost)(p, x)
            v = {name: MOMENTUM * v[name] - RATE * gradient[name] for name in p}
            return {name: p[name] + v[name] for name in p}, v

        return step

    def step(self, folder: Path, n_inputs: int, n_features: int) -> Prepared:
        import jax
        import jax.numpy as jnp

        given = arrays(folder)
        step = jax.jit(self._step(), donate_argnums=(0, 1))
        state = [{name: jnp.array(given[name]) for name in ("W", "b_hidden", "b_output")}]
        state.append({name: jnp.zeros_like(array) for name, array in state[0].items()})
        x = jnp.array(given["x"])

        def run(n: int) -> None:
            for _ in range(n):
                state[:] = step(*state, x)
            jax.block_until_ready(state)

        run(3)
        found = {name: np.array(array) for name, array in state[0].items()}
        return run, lambda: found

    def encoder(self, model: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        import jax
        import jax.numpy as jnp

        minimum, scale = map(jnp.array, scaling(model))
        W, b = jnp.array(model["W"]), jnp.array(model["b_hidden"])
        encode = jax.jit(lambda rows: jax.nn.sigmoid(((rows.astype(jnp.float32) - minimum) * scale) @ W + b))
        return lambda rows: np.asarray(encode(rows))

    def encode(self, folder: Path, n_inputs: int, n_features: int) -> Prepared:
        import jax
        import jax.numpy as jnp

        given = arrays(folder)
        minimum, scale, W, b = (jnp.array(given[name]) for name in ("minimum", "scale", "W", "b_hidden"))
        encode = jax.jit(lambda rows: jax.nn.sigmoid(((rows.astype(jnp.float32) - minimum) * scale) @ W + b))
        rows = jnp.array(given["rows"])
        found: list[Any] = []

        def run(n: int) -> None:
            for _ in range(n):
                found[:] = [encode(rows)]
                found[0].block_until_ready()

        run(1)
        return run, lambda: {"features": np.asarray(found[0])}

    def trainer(
        self, model: dict[str, np.ndarray]
    ) -> tuple[Callable[[np.ndarray], object], Callable[[], dict[str, np.ndarray]]]:
        import jax
        import jax.numpy as jnp

        minimum, scale = map(jnp.array, scaling(model))
        inner = self._step()

        def scaled_step(p: dict[str, Any], v: dict[str, Any], rows: Any) -> Any:
            return inner(p, v, (rows.astype(jnp.float32) - minimum) * scale)

        jitted = jax.jit(scaled_step, donate_argnums=(0, 1))
        state = [{name: jnp.array(model[name]) for name in ("W", "b_hidden", "b_output")}]
        state.append({name: jnp.zeros_like(array) for name, array in state[0].items()})

        def step(rows: np.ndarray) -> None:
            state[:] = jitted(*state, rows)

        return step, lambda: {name: np.array(array) for name, array in state[0].items()}


class Torch(Peer):
    """PyTorch, eager."""

    compiled = False

    def __init__(self) -> None:
        import torch

        self._device = os.environ.get("PEER_DEVICE", "cpu")
        where = torch.cuda.get_device_name() if self._device == "cuda" else "CPU"
        self.about = f"PyTorch {torch.__version__} on {where}{', torch.compile' if self.compiled else ', eager'}"

    def _maybe_compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        import torch

        return torch.compile(function) if self.compiled else function

    def _stepper(
        self, given: dict[str, np.ndarray], prepare: Callable[[Any], Any]
    ) -> tuple[Callable[[Any], None], Any]:
        import torch

        names = ("W", "b_hidden", "b_output")
        p = {name: torch.tensor(given[name], device=self._device, requires_grad=True) for name in names}
        optimizer = torch.optim.SGD(p.values(), lr=RATE, momentum=MOMENTUM)

        def cost(rows: Any, W: Any, b_hidden: Any, b_output: Any) -> Any:
            x = prepare(rows)
            h = torch.sigmoid(x @ W + b_hidden)
            return ((x - (h @ W.T + b_output)) ** 2).mean()

        cost = self._maybe_compiled(cost)

        def step(rows: Any) -> None:
            optimizer.zero_grad()
            cost(rows, *p.values()).backward()
            optimizer.step()

        return step, p

    def step(self, folder: Path, n_inputs: int, n_features: int) -> Prepared:
        import torch

        given = arrays(folder)
        step, p = self._stepper(given, lambda x: x)
        x = torch.tensor(given["x"], device=self._device)

        def run(n: int) -> None:
            for _ in range(n):
                step(x)
            if self._device == "cuda":
                torch.cuda.synchronize()

        run(3)
        found = {name: array.detach().cpu().numpy().copy() for name, array in p.items()}
        return run, lambda: found

    def _encode(self, minimum: np.ndarray, scale: np.ndarray, W: np.ndarray, b: np.ndarray) -> Callable[[Any], Any]:
        import torch

        low, s, weights, bias = (torch.tensor(array, device=self._device) for array in (minimum, scale, W, b))
        encode = self._maybe_compiled(lambda rows: torch.sigmoid(((rows.float() - low) * s) @ weights + bias))

        def run(rows: Any) -> Any:
            with torch.inference_mode():
                return encode(rows.to(self._device)).cpu()

        return run

    def encoder(self, model: dict[str, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
        import torch

        encode = self._encode(*scaling(model), model["W"], model["b_hidden"])
        return lambda rows: encode(torch.from_numpy(rows)).numpy()

    def encode(self, folder: Path, n_inputs: int, n_features: int) -> Prepared:
        import torch

        given = arrays(folder)
        encode = self._encode(*(given[name] for name in ("minimum", "scale", "W", "b_hidden")))
        rows = torch.tensor(given["rows"])
        found: list[Any] = []

        def run(n: int) -> None:
            for _ in range(n):
                found[:] = [encode(rows)]

        run(1)
        return run, lambda: {"features": found[0].numpy()}

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

    def trainer(
        self, model: dict[str, np.ndarray]
    ) -> tuple[Callable[[np.ndarray], object], Callable[[], dict[str, np.ndarray]]]:
        import torch

        minimum, scale = (torch.tensor(array, device=self._device) for array in scaling(model))
        step, p = self._stepper(model, lambda rows: (rows.float() - minimum) * scale)

        def weights() -> dict[str, np.ndarray]:
            return {name: array.detach().cpu().numpy() for name, array in p.items()}

        return lambda rows: step(torch.from_numpy(rows).to(self._device)), weights

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

    compiled = True


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


CONTESTANTS = {
    "ours": Ours,
    "blas": Blas,
    "jax": Jax,
    "torch": Torch,
    "torch-compile": TorchCompile,
    "sklearn": Sklearn,
}


if __name__ == "__main__":
    sys.exit(main())
