"""Where files store names or numbers of their columns: the rules that both readers of a file's structure share."""

from math import prod

from pipeline.hdf5.paths import parts_of

__all__ = ["VARIABLES", "has_one_for_each_column", "is_coordinate", "items_beside", "variables_beside"]

VARIABLES = "var"
"""AnnData's group, or in early versions table, with one entry for each column."""

_LAYERS = b"layers"  # AnnData's group of further matrices with the columns of `X`
_BLOCK, _ITEMS = "_values", "_items"  # how pandas calls the values and the columns of a block

_COORDINATES = frozenset(
    [
        *("wave", "wavelength", "wavelengths", "lambda", "lam", "loglam", "wavenumber", "wavenumbers", "raman_shift"),
        *("energy", "energies", "frequency", "frequencies", "freq", "mz", "m_z", "ppm", "two_theta", "q"),
    ]
)


def is_coordinate(name: str) -> bool:
    """Return whether a dataset of this name holds a physical coordinate; statistics of columns are none."""
    return name.lower() in _COORDINATES


def has_one_for_each_column(shape: tuple[int, ...], n_rows: int, n_inputs: int) -> bool:
    """Return whether a dataset beside the rows holds one value for each column, and not one for each row."""
    return n_rows != n_inputs and prod(shape) == n_inputs and n_inputs in shape


def variables_beside(dataset: str) -> str:
    """Return the path at which AnnData stores the variables of a matrix: beside it, or beside its group `layers`."""
    groups = parts_of(dataset)[:-1]
    if groups and groups[-1] == _LAYERS:
        del groups[-1]
    return b"/".join([*groups, VARIABLES.encode()]).decode("utf-8", "surrogateescape")


def items_beside(dataset: str) -> str | None:
    """Return the path at which pandas stores the columns of a block of the fixed format; None for other datasets."""
    return dataset.removesuffix(_BLOCK) + _ITEMS if dataset.endswith(_BLOCK) else None
