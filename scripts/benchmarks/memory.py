"""Races for a training step and for the features of rows, in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernels.network import Network
from scripts.benchmarks.race import Bench

ENCODE_ROWS = 8192


@dataclass(frozen=True)
class Field:
    """The contestants of a race in memory, the absolute tolerance of their results, and a description of the device."""

    names: tuple[str, ...] = ("ours", "blas", "jax", "torch", "torch-compile")
    tolerance: float = 1e-4
    where: str = ""


ON_PROCESSOR = Field()


def race_steps(bench: Bench, network: Network, batch_size: int, entry: Field = ON_PROCESSOR) -> dict[str, float]:
    """Race for a training step with momentum and tied weights, and return the ratios."""
    rng = np.random.default_rng(0)
    write_input(bench.folder, rng, network, x=rng.random((batch_size, network.n_inputs), dtype=np.float32))
    what = f"{in_words(network)}, minibatch {batch_size}{entry.where}"
    return bench.race("step", what, entry.names, {"network": asdict(network)}, (0.0, entry.tolerance), 0.3)


def race_encoders(bench: Bench, network: Network, dtype: Any, entry: Field = ON_PROCESSOR) -> dict[str, float]:
    """Race for the features of rows in memory, including the scaling, and return the ratios."""
    write_pixels(bench.folder, network, dtype)
    what = f"{in_words(network)}, {np.dtype(dtype)}{entry.where}"
    return bench.race("encode", what, entry.names, {"network": asdict(network)}, (0.0, entry.tolerance), 0.3)


def write_pixels(folder: Path, network: Network, dtype: Any) -> None:
    """Write the input of an encoder."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (ENCODE_ROWS, network.n_inputs)).astype(dtype)
    minimum = np.zeros(network.n_inputs, np.float32)
    scale = np.full(network.n_inputs, 1 / 255, dtype=np.float32)
    write_input(folder, rng, network, rows=rows, minimum=minimum, scale=scale)


def write_input(folder: Path, rng: np.random.Generator, network: Network, **arrays: np.ndarray) -> None:
    """Write the input of a case in memory: random weights, zero biases, and other arrays."""
    parameters = {}
    for name, shape in network.shapes.items():
        values = np.zeros(shape)
        if len(shape) > 1:
            values = rng.normal(size=shape) / np.sqrt(sum(shape))
        parameters[name] = values.astype(np.float32)
    np.savez(folder / "input.npz", **parameters, **arrays)


def in_words(network: Network) -> str:
    """Return the widths of a network as text."""
    return " -> ".join(map(str, network.widths))


def encoding_rate(bench: Bench, network: Network, dtype: Any) -> float:
    """Measure how many rows in memory our encoder encodes per second."""
    write_pixels(bench.folder, network, dtype)
    return ENCODE_ROWS / bench.measure("ours", "encode", 40, network=asdict(network))
