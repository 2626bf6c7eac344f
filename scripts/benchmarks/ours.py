"""Two contestants of the races: this project, and the products of the same work through BLAS alone."""

from __future__ import annotations

import ctypes
import os
import shutil
import threading
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scripts.benchmarks.given import BLOCK_ROWS, MOMENTUM, PART_ROWS, RATE, Prepared, arrays, cost_of, network_of


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
        n_rows, bias = len(given["x"]), list(autoencoder.shared.values())[1]
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

    def step(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        given, layers = arrays(folder), network_of(network).layers
        W = [given[name] for name, _, _ in layers]
        dW = [np.empty_like(each) for each in W]
        a = [given["x"], *(np.empty((len(given["x"]), each.shape[1]), dtype=np.float32) for each in W)]
        y = [np.empty_like(each) for each in a]

        def run(n: int) -> None:
            for _ in range(n):
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

        run(1)
        return run, dict

    def encode(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        given, layers = arrays(folder), network_of(network).layers
        W = [given[name] for name, _, _ in layers]
        a = [given["rows"].astype(np.float32)]
        a += [np.empty((len(a[0]), each.shape[1]), dtype=np.float32) for each in W]

        def run(n: int) -> None:
            for _ in range(n):
                for (left, out), each in zip(pairwise(a), W, strict=True):
                    self.product(left, each, out)

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
