"""What all contestants of the races are given, and what each case gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kernels.network import Network

# What a case gives: a callable that does its work n times, and one that returns the result as arrays. The first one may
# return the seconds that count, if it does more than is asked for.
Prepared = tuple[Callable[[int], float | None], Callable[[], dict[str, np.ndarray]]]

MOMENTUM, RATE = 0.9, 0.1
BLOCK_ROWS, PART_ROWS = 8192, 65536


def network_of(told: Mapping[str, Any]) -> Network:
    """A network as it was told in JSON."""
    return Network(**{**told, "widths": tuple(told["widths"])})


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
