"""Write files whose columns have names or numbers, in the formats of common programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np

Write = Callable[[Path, np.ndarray, Sequence[str]], None]


def anndata(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write an AnnData file. Its `var` is a group with an attribute that names the dataset of names."""
    with h5py.File(path, "w") as file:
        file["X"] = rows
        file["var/genes"] = list(names)
        file["var/mean"] = np.zeros(len(names))
        file["var"].attrs["_index"] = "genes"


def early_anndata(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write a file of early versions of AnnData, in which `var` is a table."""
    with h5py.File(path, "w") as file:
        file["X"] = rows
        records = [(name.encode(), 1.0) for name in names]
        file["var"] = np.array(records, [("index", "S20"), ("mean", "f8")])


def masked_anndata(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write an AnnData file with names as pandas 3 stores them: with a mask."""
    with h5py.File(path, "w") as file:
        file["X"] = rows
        file["var/_index/values"] = list(names)
        file["var/_index/mask"] = np.zeros(len(names), bool)
        file["var"].attrs["_index"] = "_index"


def attribute(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write a file with h5py, with the attribute that docs/inputs.md recommends."""
    with h5py.File(path, "w") as file:
        file["X"] = rows
        file["X"].attrs["columns"] = list(names)


SOURCES: dict[str, Write] = {
    "early anndata": early_anndata,
    "masked anndata": masked_anndata,
    "attribute": attribute,
}
"""Functions that write files of kinds that today's libraries do not always write."""
