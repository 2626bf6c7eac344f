"""Write files whose columns have names or numbers, in the formats of common programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np

from tests.support.helpers import csr

Write = Callable[[Path, np.ndarray, Sequence[str]], None]


def anndata(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write an AnnData file. Its `var` is a group with an attribute that names the dataset of names."""
    with h5py.File(path, "w") as file:
        file["X"] = rows
        _variables(file.create_group("var"), names)


def sparse_anndata(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write an AnnData file with a matrix in CSR form."""
    with h5py.File(path, "w") as file:
        _write_csr(file, "X", rows)
        _variables(file.create_group("var"), names)


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


def raw_anndata(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write an AnnData file whose `raw/X` has its own variables."""
    with h5py.File(path, "w") as file:
        file["X"] = rows[:, :2]
        _variables(file.create_group("var"), ["other", "names"])
        file["raw/X"] = rows
        _variables(file["raw"].create_group("var"), names)


def layered_anndata(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write an AnnData file with a second matrix of the same variables."""
    with h5py.File(path, "w") as file:
        file["X"] = np.zeros_like(rows)
        _write_csr(file, "layers/counts", rows)
        _variables(file.create_group("var"), names)


def attribute(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write a file with h5py, with the attribute that docs/inputs.md recommends."""
    with h5py.File(path, "w") as file:
        file["X"] = rows
        file["X"].attrs["columns"] = list(names)


def table(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write a table of PyTables."""
    with h5py.File(path, "w") as file:
        file["table"] = rows.copy().view([(name, rows.dtype) for name in names]).reshape(-1)


def frame(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write a data frame of pandas in its fixed format."""
    with h5py.File(path, "w") as file:
        file["df/axis0"] = file["df/block0_items"] = np.array([name.encode() for name in names])
        file["df/block0_values"] = rows


def netcdf_texts(path: Path, rows: np.ndarray, names: Sequence[str]) -> None:
    """Write a netCDF file with a coordinate variable of texts along the columns."""
    _with_scale(path, rows, "gene", list(names))


SOURCES: dict[str, tuple[Write, str | None]] = {
    "anndata": (anndata, None),
    "sparse anndata": (sparse_anndata, None),
    "early anndata": (early_anndata, None),
    "masked anndata": (masked_anndata, None),
    "raw anndata": (raw_anndata, "raw/X"),
    "layered anndata": (layered_anndata, "layers/counts"),
    "attribute": (attribute, None),
    "table": (table, None),
    "frame": (frame, "df"),
    "netcdf": (netcdf_texts, None),
}
"""Functions that write each kind of file, and the dataset that a user must specify, or None."""


def with_coordinate(path: Path, rows: np.ndarray, values: object, name: str = "wavelength") -> None:
    """Write rows with a numeric dataset next to them."""
    with h5py.File(path, "w") as file:
        file["X"] = rows
        file[name] = values


def with_scale(path: Path, rows: np.ndarray, values: object) -> None:
    """Write rows with a netCDF coordinate variable of numbers along the columns."""
    _with_scale(path, rows, "channel", values)


def _with_scale(path: Path, rows: np.ndarray, name: str, values: object) -> None:
    with h5py.File(path, "w") as file:
        file["X"] = rows
        file[name] = values
        file[name].make_scale(name)
        file["X"].dims[1].attach_scale(file[name])


def _variables(group: h5py.Group, names: Sequence[str]) -> None:
    group["genes"] = list(names)
    group["mean"] = np.zeros(len(names))
    group.attrs["_index"] = "genes"


def _write_csr(file: h5py.File, name: str, rows: np.ndarray) -> None:
    group = file.create_group(name)
    group["data"], group["indices"], group["indptr"] = csr(rows)
    group.attrs.update({"encoding-type": "csr_matrix", "shape": rows.shape})
