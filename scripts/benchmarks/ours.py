"""Two contestants of the races: this project, and the products of the same work through BLAS alone."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.contestants import BLOCK_ROWS, MOMENTUM, RATE, Prepared, arrays, cost_of, network_of, repeated

PART_ROWS = 65536


class Ours:
    """This project."""

    def __init__(self) -> None:
        from kernels import backend

        self.about = f"shardpress on {backend.start()}"

    def step(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        from kernels.autoencoder import Autoencoder
        from kernels.step import TrainingStep
        from kernels.updates import Rule

        given = arrays(folder)
        autoencoder = Autoencoder(network_of(network))
        autoencoder.set_parameters({name: given[name] for name in autoencoder.shared})
        step = TrainingStep(autoencoder, Rule("momentum", MOMENTUM), np.dtype(np.float32))
        n_rows = len(given["x"])
        bias = list(autoencoder.shared.values())[1]
        n_at_once = step.n_at_once(n_rows)
        several = np.concatenate([given["x"]] * n_at_once)

        def run(n: int) -> None:
            for left in range(n, 0, -n_at_once):  # a device gets as many at a time as in a training
                step.begin(several, None, n_rows)
                step.take([RATE] * min(left, n_at_once))
            bias.get_value()  # which on a device waits for all steps

        run(3)
        found = autoencoder.parameters()
        return run, lambda: found

    def encode(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        from kernels.autoencoder import Autoencoder

        given = arrays(folder)
        autoencoder = Autoencoder(network_of(network), given["minimum"], given["scale"])
        autoencoder.set_parameters({name: given[name] for name in autoencoder.shared})
        rows = given["rows"]
        out = np.empty((len(rows), autoencoder.network.n_features), dtype=np.float32)

        run = repeated(lambda: autoencoder.encode(rows, out))
        run(1)
        return run, lambda: {"features": out}

    def encode_files(self, folder: Path, shards: str, model: str) -> Prepared:
        from pipeline.features import open_features
        from pipeline.run.engine import run as extract
        from pipeline.settings.config import Config

        output = folder / "ours"

        def work() -> None:
            shutil.rmtree(output, ignore_errors=True)
            extract(Config.of(input=(shards,), model=model, output=str(output)), ["bench.py"])

        run = repeated(work)
        run(1)
        return run, lambda: {"features": np.asarray(open_features(output).features.compute())}

    def encode_files_barely(self, folder: Path, shards: str, model: str) -> Prepared:
        """Read, encode, hash, write, sync, and nothing else of a run: what no pipeline around this encoder can beat."""
        bare = BareEncoding(folder / "bare", shards, model)
        run = repeated(bare.encode)
        run(1)
        return run, bare.result

    def train_files(self, folder: Path, shards: str, epochs: int, batch_size: int, memory: int) -> Prepared:
        from pipeline.model import load_model
        from pipeline.run.engine import run as extract
        from pipeline.settings.config import Config

        output = folder / "ours"
        config = Config.of(
            input=(shards,), output=str(output), epochs=epochs, batch_size=batch_size, optimizer="momentum",
            hidden=(), code_activation="sigmoid", decoder_gain=False, start="random", biases="zero",
            schedule="constant", learning_rate=RATE, validation_fraction=0.0, memory_budget=memory,
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


class BareEncoding:
    """Encoding of shards by a pool of threads, without records, checks or a report."""

    def __init__(self, output: Path, shards: str, model: str) -> None:
        from kernels.autoencoder import Autoencoder
        from pipeline.model import load_model
        from pipeline.shards.open import open_shards
        from pipeline.shards.shard import blocks

        fitted = load_model(Path(model))
        found = open_shards([shards])
        self.output = output
        self.dtype = np.dtype(found[0].dtype)
        self.parts = list(blocks(found, PART_ROWS))
        self.autoencoder = Autoencoder(fitted.network, *fitted.scaler.arrays(self.dtype))
        self.autoencoder.set_parameters(fitted.parameters)
        self.n_cores = len(os.sched_getaffinity(0))
        self.turns = threading.Semaphore(self.n_cores)
        self.memory = threading.local()

    def encode(self) -> None:
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir()
        with ThreadPoolExecutor(self.n_cores + 2) as pool:
            list(pool.map(self._encode_part, range(len(self.parts))))

    def result(self) -> dict[str, np.ndarray]:
        parts = [np.fromfile(self.output / str(i), np.float32) for i in range(len(self.parts))]
        return {"features": np.concatenate(parts)}

    def _encode_part(self, i: int) -> None:
        from pipeline.formats import digest
        from pipeline.output.disk import Disk, publish

        part = self.parts[i]
        rows, memory = self._memory_of_thread()
        features = memory.features(len(part))
        with self.turns:
            self._encode_rows(part, rows, features)
        data = features.reshape(-1).view(np.uint8).data
        digest([data])
        publish(Disk(), self.output / str(i), data)

    def _encode_rows(self, part: Any, memory: np.ndarray, features: np.ndarray) -> None:
        from pipeline.shards.rows import read
        from pipeline.shards.shard import Block

        for first in range(part.start, part.stop, BLOCK_ROWS):
            block = Block(part.shard, first, min(first + BLOCK_ROWS, part.stop))
            rows = read(block, memory[: len(block)])
            self.autoencoder.encode(rows, features[first - part.start :][: len(block)])

    def _memory_of_thread(self) -> tuple[np.ndarray, Any]:
        from pipeline.encoding.partfile import PartMemory

        if not hasattr(self.memory, "rows"):
            network = self.autoencoder.network
            self.memory.rows = np.empty((BLOCK_ROWS, network.n_inputs), dtype=self.dtype)
            self.memory.part = PartMemory(PART_ROWS, network.n_features)
        return self.memory.rows, self.memory.part


class Blas:
    """The products of the same work through BLAS alone."""

    def __init__(self) -> None:
        import scipy_openblas32

        library = ctypes.CDLL(str(Path(scipy_openblas32.get_lib_dir()) / "libscipy_openblas.so"))
        library.scipy_openblas_get_corename.restype = ctypes.c_char_p
        self.about = f"OpenBLAS, kernels for {library.scipy_openblas_get_corename().decode()}"
        self._sgemm = library.scipy_cblas_sgemm
        factor = ctypes.c_float
        matrix = [ctypes.POINTER(ctypes.c_float), ctypes.c_int]
        self._sgemm.argtypes = [ctypes.c_int] * 6 + [factor, *matrix, *matrix, factor, *matrix]

    def product(
        self, a: np.ndarray, b: np.ndarray, out: np.ndarray, turned_a: bool = False, turned_b: bool = False
    ) -> None:
        """Compute ``out = a . b``, with either of them transposed."""
        pointers = [m.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) for m in (a, b, out)]
        inner = a.shape[0] if turned_a else a.shape[1]
        self._sgemm(
            101, 112 if turned_a else 111, 112 if turned_b else 111, *out.shape, inner, 1.0, pointers[0], a.shape[1],
            pointers[1], b.shape[1], 0.0, pointers[2], out.shape[1],
        )  # fmt: skip

    def step(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        given = arrays(folder)
        W, a = self._layers(given, network, given["x"])
        dW = [np.empty_like(each) for each in W]
        y = [np.empty_like(each) for each in a]

        def work() -> None:
            for i in range(len(W)):
                self.product(a[i], W[i], a[i + 1])
            for i in reversed(range(len(W))):
                self.product(a[i + 1], W[i], y[i], turned_b=True)
            for i in range(len(W)):
                self.product(y[i], W[i], a[i + 1])
                self.product(y[i], a[i + 1], dW[i], turned_a=True)
            for i in reversed(range(len(W))):
                self.product(a[i], a[i + 1], dW[i], turned_a=True)
                if i > 0:
                    self.product(a[i + 1], W[i], y[i], turned_b=True)

        return self._prepared(work)

    def encode(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        given = arrays(folder)
        W, a = self._layers(given, network, given["rows"].astype(np.float32))

        def work() -> None:
            for i, each in enumerate(W):
                self.product(a[i], each, a[i + 1])

        return self._prepared(work)

    def square(self, folder: Path, n: int) -> Prepared:
        a = np.random.default_rng(0).random((n, n), dtype=np.float32)
        b = np.random.default_rng(1).random((n, n), dtype=np.float32)
        out = np.empty_like(a)
        return self._prepared(lambda: self.product(a, b, out))

    def _layers(
        self, given: Mapping[str, np.ndarray], network: Mapping[str, Any], rows: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Return the weights of each layer, and memory for the activations, of which the first are the rows."""
        W = [given[name] for name, _, _ in network_of(network).layers]
        return W, [rows, *(np.empty((len(rows), each.shape[1]), dtype=np.float32) for each in W)]

    def _prepared(self, work: Callable[[], object]) -> Prepared:
        run = repeated(work)
        run(1)
        return run, dict
