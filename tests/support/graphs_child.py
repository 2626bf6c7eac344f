"""Run every graph on the device of THEANO_FLAGS: encode rows of each dtype and train each network with each rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from shardpress_kernels import backend
from shardpress_kernels.autoencoder import Autoencoder
from shardpress_kernels.graph import _reconstruction
from shardpress_kernels.network import Network
from shardpress_kernels.ops import DTYPES
from shardpress_kernels.rules import RULES
from shardpress_kernels.step import TrainingStep
from tests.support.networks import NETWORKS, random_parameters
from tests.support.steps import take_step

_N_ROWS = 24


def autoencoders(dtype: str, networks: dict[str, Network]) -> Iterator[tuple[str, Autoencoder, np.ndarray]]:
    """Yield each network with parameters and a scaling, and rows for it."""
    rng = np.random.default_rng(3)
    for name, network in networks.items():
        rows = rng.integers(0, 100, (_N_ROWS, network.n_inputs)).astype(dtype)
        wide = np.float64 if rows.dtype.itemsize > 2 and dtype != "float32" else np.float32
        autoencoder = Autoencoder(network, np.zeros(network.n_inputs, wide), np.full(network.n_inputs, 0.01, wide))
        autoencoder.set_parameters(random_parameters(rng, network))
        yield name, autoencoder, rows


def encode(autoencoder: Autoencoder, rows: np.ndarray) -> None:
    """Run all functions that need no training."""
    features = autoencoder.encode(rows)
    autoencoder.errors(rows)
    autoencoder.errors(rows, features)
    symbol = backend.load().tensor.fmatrix()
    backend.compile_function([symbol], _reconstruction(autoencoder.network, symbol, autoencoder.shared))(features)


def train(autoencoder: Autoencoder, rows: np.ndarray, rule: str, corruption: float, is_resident: bool) -> None:
    """Take one step with the cost and one without."""
    resident = rows.copy() if is_resident else None
    step = TrainingStep(autoencoder, rule, rows.dtype, resident, corruption)
    noise = np.full(rows.shape, 99, np.uint8) if corruption else None
    for with_cost in (True, False):
        take_step(step, np.arange(_N_ROWS) if is_resident else rows, 0.01, with_cost, noise)
    step.state()


def main(names: Sequence[str]) -> None:
    """Run each graph once, or the most common graphs of the networks with these names."""
    backend.start(require=True)
    networks = {name: NETWORKS[name] for name in names} or NETWORKS
    for _, autoencoder, rows in autoencoders("uint8", networks):
        encode(autoencoder, rows)
        for rule in ["adam"] if names else RULES:
            train(autoencoder, rows, rule, 0.25, is_resident=False)
            train(autoencoder, rows, rule, 0.0, is_resident=True)
    for dtype in [] if names else sorted({*DTYPES, "float16"}):
        for _, autoencoder, rows in autoencoders(dtype, {"leaky": NETWORKS["leaky"]}):
            encode(autoencoder, rows)
            for is_resident in (False, True):
                train(autoencoder, rows, "adam", 0.0, is_resident)
