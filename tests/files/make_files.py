"""Write the files in this directory again, with the original software.

Run this program in an environment with the packages that README.md names: python tests/files/make_files.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import h5py
import hdf5storage
import numpy as np
import pandas as pd
import scipy.sparse
import tables
import xarray

HERE = Path(__file__).parent
ROWS = (np.arange(240).reshape(60, 4) % 97).astype("<i4")
FEW = np.where(ROWS % 3, 0, ROWS).astype("f4")
KINDS = np.array(["b", "a", "c"])[ROWS[:, 0] % 3]


def sparse() -> None:
    """Write an AnnData file with categorical labels."""
    obs = pd.DataFrame({"kind": pd.Categorical(KINDS)}, index=[f"cell {i}" for i in range(60)])
    data = anndata.AnnData(scipy.sparse.csr_matrix(FEW), obs=obs)
    with h5py.File(HERE / "sparse.h5ad", "w", libver="latest") as file:  # ten times smaller
        anndata.io.write_elem(file, "/", data)


def frames() -> None:
    """Write data frames of pandas, by PyTables."""
    frame = pd.DataFrame(ROWS.astype("f4"), columns=list("abcd"))
    frame.to_hdf(HERE / "frames-fixed.h5", key="df")
    frame.to_hdf(HERE / "frames-table.h5", key="df", format="table", index=False, complevel=1)


def matlab() -> None:
    """Write a MATLAB 7.3 file: a user block, rows in columns, and labels in a separate column."""
    arrays = {"X": ROWS.astype("f8"), "y": np.arange(60.0)}
    hdf5storage.savemat(str(HERE / "matlab.mat"), arrays, format="7.3", oned_as="column", store_python_metadata=False)


def netcdf() -> None:
    """Write rows over times by xarray."""
    times = pd.date_range("2024-01-01", periods=60, freq="h")
    array = xarray.DataArray(ROWS.astype("f4"), {"time": times}, ("time", "place"), "temp")
    packed = {"dtype": "i2", "scale_factor": 0.5, "add_offset": 1.0, "_FillValue": -9999}
    array.to_netcdf(HERE / "netcdf-times.nc", engine="netcdf4", encoding={"temp": packed})


def pytables() -> None:
    """Write an extendable array of PyTables after a user block, compressed by Blosc."""
    filters = tables.Filters(5, "blosc", fletcher32=True)
    with tables.open_file(HERE / "pytables.h5", "w", filters=filters, user_block_size=512) as file:
        rows = file.create_earray("/", "X", tables.Int32Atom(), (0, 4), chunkshape=(35, 4), track_times=False)
        rows.append(ROWS)
        file.create_array("/", "y", np.arange(60.0), track_times=False)


def main() -> None:
    """Write all files."""
    for write in (sparse, frames, matlab, netcdf, pytables):
        write()


if __name__ == "__main__":
    sys.exit(main())
