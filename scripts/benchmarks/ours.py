"""Two contestants of the races: this project, and BLAS alone, which computes only the matrix products."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kernels import backend
from kernels.autoencoder import Autoencoder
from kernels.network import Network
from kernels.step import TrainingStep
from kernels.updates import Rule
from scripts.benchmarks.contestants import MOMENTUM, RATE, Prepared, arrays, cost_of, network_of, repeat

Arrays = list[np.ndarray]

# Values of the enumerations of CBLAS.
_ROW_MAJOR = 101
_NOT_TRANSPOSED = 111
_TRANSPOSED = 112


class Ours:
    """This project."""

    def __init__(self) -> None:
        self.about = f"shardpress on {backend.start()}"

    def step(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        """Take a training step."""
        values = arrays(folder)
        autoencoder = load_autoencoder(network_of(network), values)
        step = TrainingStep(autoencoder, Rule("momentum", MOMENTUM), np.dtype(np.float32))
        n_rows = len(values["x"])
        n_at_once = step.n_at_once(n_rows)
        rows = np.concatenate([values["x"]] * n_at_once)
        bias = list(autoencoder.shared.values())[1]

        def run(n: int) -> None:
            for n_left in range(n, 0, -n_at_once):  # as in a training run, a device gets several minibatches at a time
                step.begin(rows, None, n_rows)
                step.take([RATE] * min(n_left, n_at_once))
            bias.get_value()  # waits for a device

        run(3)
        result = autoencoder.parameters()
        return run, lambda: result

    def encode(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        """Encode rows in memory."""
        values = arrays(folder)
        autoencoder = load_autoencoder(network_of(network), values, values["minimum"], values["scale"])
        features = np.empty((len(values["rows"]), autoencoder.network.n_features), dtype=np.float32)
        run = repeat(lambda: autoencoder.encode(values["rows"], features))
        return run, lambda: {"features": features}

    def encode_files(self, folder: Path, shards: str, model: str) -> Prepared:
        """Encode shards in a whole run."""
        from pipeline.features import open_features

        output = folder / "ours"
        run = repeat(lambda: run_pipeline(output, input=(shards,), model=model))
        return run, lambda: {"features": np.asarray(open_features(output).features.compute())}

    def train_files(self, folder: Path, shards: str, epochs: int, batch_size: int, memory: int) -> Prepared:
        """Scan and train; the encoding of the run does not count."""
        from pipeline.model import load_model

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
            runs = [run_pipeline(output, **settings) for _ in range(n)]
            return sum(seconds["scan"] + seconds["training"] for seconds in runs)

        def result() -> dict[str, np.ndarray]:
            model = load_model(output)
            minimum, scale = model.scaler.arrays(np.dtype(np.float32))
            return {"cost": cost_of(shards, minimum, scale, model.parameters)}

        run(1)
        return run, result


def load_autoencoder(network: Network, values: Mapping[str, np.ndarray], *scaling: np.ndarray) -> Autoencoder:
    """Return an autoencoder with given parameters."""
    autoencoder = Autoencoder(network, *scaling)
    autoencoder.set_parameters({name: values[name] for name in autoencoder.shared})
    return autoencoder


def run_pipeline(output: Path, **settings: Any) -> Mapping[str, float]:
    """Run the pipeline, and return the seconds of each stage."""
    from pipeline.run.engine import run
    from pipeline.settings.config import Config

    shutil.rmtree(output, ignore_errors=True)
    return run(Config.of(output=str(output), **settings), ["bench.py"]).seconds


class Blas:
    """OpenBLAS alone, which computes the matrix products of the same work."""

    def __init__(self) -> None:
        import scipy_openblas32

        library = ctypes.CDLL(str(Path(scipy_openblas32.get_lib_dir()) / "libscipy_openblas.so"))
        library.scipy_openblas_get_corename.restype = ctypes.c_char_p
        self.about = f"OpenBLAS, kernels for {library.scipy_openblas_get_corename().decode()}"
        self._sgemm = library.scipy_cblas_sgemm
        matrix = [ctypes.POINTER(ctypes.c_float), ctypes.c_int]
        self._sgemm.argtypes = [*[ctypes.c_int] * 6, ctypes.c_float, *matrix, *matrix, ctypes.c_float, *matrix]

    def product(
        self, a: np.ndarray, b: np.ndarray, out: np.ndarray, transpose_a: bool = False, transpose_b: bool = False
    ) -> None:
        """Compute ``out = a . b``; `a` or `b` can be transposed."""
        order_a = _TRANSPOSED if transpose_a else _NOT_TRANSPOSED
        order_b = _TRANSPOSED if transpose_b else _NOT_TRANSPOSED
        n_inner = a.shape[0] if transpose_a else a.shape[1]
        operands = []
        for matrix in (a, b, out):
            operands.append((matrix.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), matrix.shape[1]))
        self._sgemm(
            _ROW_MAJOR, order_a, order_b, *out.shape, n_inner, 1.0, *operands[0], *operands[1], 0.0, *operands[2]
        )

    def step(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        """Compute the products of a training step with tied weights."""
        values = arrays(folder)
        W, a = layers(values, network, values["x"])
        dW = [np.empty_like(each) for each in W]
        y = [np.empty_like(each) for each in a]
        return repeat(lambda: self._products_of_step(W, dW, a, y)), dict

    def _products_of_step(self, W: Arrays, dW: Arrays, a: Arrays, y: Arrays) -> None:
        """Compute the products of the features `a`, the reconstruction `y` and the gradients `dW`."""
        n = len(W)
        for i in range(n):
            self.product(a[i], W[i], a[i + 1])
        for i in reversed(range(n)):
            self.product(a[i + 1], W[i], y[i], transpose_b=True)
        for i in range(n):
            self.product(y[i], W[i], a[i + 1])
            self.product(y[i], a[i + 1], dW[i], transpose_a=True)
        for i in reversed(range(n)):
            self.product(a[i], a[i + 1], dW[i], transpose_a=True)
            if i > 0:
                self.product(a[i + 1], W[i], y[i], transpose_b=True)

    def encode(self, folder: Path, network: Mapping[str, Any]) -> Prepared:
        """Compute the products of encoding rows in memory."""
        values = arrays(folder)
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


def layers(values: Mapping[str, np.ndarray], network: Mapping[str, Any], rows: np.ndarray) -> tuple[Arrays, Arrays]:
    """Return the weights of each layer, and the rows followed by arrays for the activations of each layer."""
    weights = [values[name] for name, _, _ in network_of(network).layers]
    activations = [rows]
    for each in weights:
        activations.append(np.empty((len(rows), each.shape[1]), dtype=np.float32))
    return weights, activations
