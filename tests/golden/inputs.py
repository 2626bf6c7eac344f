"""Input files of the golden set: made-up rows, and files that other software wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import h5py
import numpy as np

from tests.support.helpers import csr

N_COLUMNS = 24
N_ROWS = (400, 240)
"""Rows of the two files of most directories."""

_FOREIGN = ("matlab.mat", "pytables.h5", "frames-table.h5", "netcdf-times.nc")

Write = Callable[[h5py.File, np.random.Generator, int], None]
"""Write a file with this number of rows."""


def write_inputs(folder: Path) -> None:
    """Write all input files."""
    for seed, (name, write) in enumerate(_DIRECTORIES.items()):
        (folder / name).mkdir(parents=True)
        for i, n_rows in enumerate(N_ROWS):
            ending = "h5ad" if name == "anndata" else "h5"
            user_block = 512 if name == "column-major" else 0  # as in MATLAB's files
            with h5py.File(folder / name / f"{i}.{ending}", "w", userblock_size=user_block) as file:
                write(file, np.random.default_rng([seed, i]), n_rows)
    (folder / "foreign").mkdir()
    for name in _FOREIGN:
        copyfile(Path(__file__).parents[1] / "files" / name, folder / "foreign" / name)


# -- rows --------------------------------------------------------------------------------------------------------


def _signal(rng: np.random.Generator, n_rows: int) -> np.ndarray:
    """Return float64 rows: factors of decreasing strength, so that principal components are well separated.

    All machines compute the same values: sums have a fixed order, and the last bits are rounded.
    """
    loadings = np.random.default_rng(0).normal(size=(N_COLUMNS, N_COLUMNS))
    rows = 0.05 * rng.normal(size=(n_rows, N_COLUMNS))
    for i, loading in enumerate(loadings):
        rows += 0.85**i * rng.normal(size=(n_rows, 1)) * loading
    return np.round(rows * 256) / 256


def _integers(rng: np.random.Generator, n_rows: int, low: int, high: int) -> np.ndarray:
    """Return float64 rows of integers from `low` to `high`."""
    middle = (low + high) / 2
    return np.clip(np.round(middle + (high - low) / 16 * _signal(rng, n_rows)), low, high)


def _counts(rng: np.random.Generator, n_rows: int) -> np.ndarray:
    """Return float64 rows of counts. Most of them are 0, and no row is 0."""
    counts = np.maximum(np.round(4 * _signal(rng, n_rows) - 4), 0)
    counts[:, 0] += 1
    return counts


# -- files -------------------------------------------------------------------------------------------------------


def _floats(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write contiguous float32 rows, with labels of several kinds."""
    rows = _signal(rng, n_rows).astype("<f4")
    classes = (rows[:, 0] > 0).astype("<i8") + 2 * (rows[:, 1] > 0)
    numbers = np.arange(n_rows)
    file["X"] = rows
    file["y"] = classes
    file["value"] = rows[:, 2].astype("<f8") - rows[:, 3]
    file["few"] = np.where(numbers % 10 == 3, classes, np.nan)
    file["name"] = [f"row {number}" for number in numbers]
    file["split"] = np.where(numbers % 4 == 1, "test", "train").astype("S")


def _doubles(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write float64 rows in compressed chunks, which do not divide the rows evenly."""
    rows = _signal(rng, n_rows)
    file.create_dataset("X", data=rows, chunks=(70, 10), compression="gzip", shuffle=True)
    file["id"] = np.arange(n_rows, dtype="<u4")


def _images(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write rows of rank 3."""
    rows = _integers(rng, n_rows, 0, 255).astype("u1")
    file.create_dataset("images", data=rows.reshape(n_rows, 4, 6), chunks=(50, 4, 6), compression="lzf")


def _bits(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write columns of 0 and 1."""
    file["X"] = (_signal(rng, n_rows) > 1).astype("u1")


def _dense_counts(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    rows = _counts(rng, n_rows).astype("<u2")
    file.create_dataset("X", data=rows, chunks=(64, N_COLUMNS), fletcher32=True)


def _shorts(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write big-endian integers of both signs."""
    file["X"] = _integers(rng, n_rows, -3000, 3000).astype(">i2")


def _column_major(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    rows = _integers(rng, n_rows, -100_000, 100_000).astype("<i4")
    file.create_dataset("X", data=rows.T, chunks=(10, 128))
    file["y"] = (rows[:, :1] > 0).T.astype("<i4")


def _longs(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write integers that float64 cannot represent, such as times in nanoseconds."""
    file["X"] = _integers(rng, n_rows, -100_000, 100_000).astype("<i8") + 2**60


def _bad_rows(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write float32 rows; the last one and one in the middle are bad."""
    rows = _signal(rng, n_rows).astype("<f4") + 20
    rows[n_rows // 2, 3] = np.inf
    rows[-1] = np.nan
    file["X"] = rows


def _gaps(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write float32 rows whose first five columns have missing values."""
    rows = _signal(rng, n_rows).astype("<f4")
    rows[:, :5][rng.random((n_rows, 5)) < 0.1] = np.nan
    file["X"] = rows


def _sentinels(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write integers with a number for missing values."""
    rows = _integers(rng, n_rows, -3000, 3000)
    rows[rng.random(rows.shape) < 0.05] = np.nan
    file["X"] = np.where(np.isnan(rows), -9999, rows).astype("<i2")


def _anndata(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write sparse rows as AnnData does. The two files have different categories."""
    rows = _counts(rng, n_rows).astype("<f4")
    matrix = file.create_group("X")
    matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": rows.shape})
    matrix["data"], matrix["indices"], matrix["indptr"] = csr(rows)
    obs = file.create_group("obs")
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    obs["_index"] = [f"cell {number} of {n_rows}" for number in range(n_rows)]
    kinds = ["B cell", "T cell", "none"] if n_rows == N_ROWS[0] else ["T cell", "monocyte"]
    _categorical(obs, "kind", np.arange(n_rows) % len(kinds), kinds)
    _categorical(obs, "donor", np.arange(n_rows) % 3 - 1, [17, 4])
    var = file.create_group("var")
    var.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    var["_index"] = [f"gene {i}" for i in range(N_COLUMNS)]


def _categorical(obs: h5py.Group, name: str, codes: np.ndarray, categories: list[str] | list[int]) -> None:
    group = obs.create_group(name)
    group.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
    group["codes"] = codes.astype("i1")
    group["categories"] = categories


def _named(file: h5py.File, rng: np.random.Generator, n_rows: int) -> None:
    """Write rows whose columns have names. The second file has the reverse order, and no labels."""
    rows = _signal(rng, n_rows).astype("<f4")
    names = [f"column {i}" for i in range(N_COLUMNS)]
    if n_rows == N_ROWS[0]:
        file["X"] = rows
        file["X"].attrs["columns"] = names
        file["y"] = (rows[:, 0] > 0).astype("<i4")
    else:
        file["X"] = rows[:, ::-1]
        file["X"].attrs["columns"] = names[::-1]


_DIRECTORIES: dict[str, Write] = {
    "floats": _floats,
    "changed": _floats,  # other rows of the same kind
    "doubles": _doubles,
    "images": _images,
    "bits": _bits,
    "dense-counts": _dense_counts,
    "shorts": _shorts,
    "column-major": _column_major,
    "longs": _longs,
    "bad-rows": _bad_rows,
    "gaps": _gaps,
    "sentinels": _sentinels,
    "anndata": _anndata,
    "named": _named,
}
