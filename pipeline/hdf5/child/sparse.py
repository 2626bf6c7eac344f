"""A sparse matrix, as AnnData, h5sparse and others write it: a group of values, their columns, and where rows begin.

In the child; what it says is checked again where the rows are read.
"""

from math import prod
from typing import Any

import h5py
import numpy as np

from pipeline.hdf5.child.find import Refused, attribute, dtype_of, elsewhere, held, is_plain, link_of
from pipeline.hdf5.forms import text, under
from pipeline.hdf5.limits import MOST_COLUMNS

__all__ = ["is_sparse", "n_firsts", "parts_and_shape"]

_PARTS = (b"data", b"indices", b"indptr")
_LONGEST_ATTRIBUTE = 64  # bytes
_OTHER_WAY = {
    False: "a sparse matrix by columns (CSC), expected one by rows. Write it as CSR (adata.X = adata.X.tocsr()), or "
    "give --orientation columns if its columns are the samples.",
    True: "a sparse matrix by rows (CSR), of which --orientation columns cannot read columns. Leave it out, or write "
    "the matrix transposed (adata.T).",
}
_EITHER_WAY = (
    "a sparse matrix of shape {} that does not say whether it is stored by rows or by columns. Give --orientation rows "
    "if by rows (CSR), or --orientation columns if by columns (CSC), which are then the samples."
)


def is_sparse(group: Any) -> bool:
    """Whether a group holds what a sparse matrix is made of."""
    return all(group.links.exists(part) for part in _PARTS)


def n_firsts(group: Any) -> int:
    """How many places where rows begin a sparse matrix has; 0 where these are no dataset of its own."""
    dataset = held(group, _PARTS[2])
    return prod(dataset.shape or (0,)) if dataset is not None and not elsewhere(dataset) else 0


def parts_and_shape(
    group: Any, name: str, orientation: str | None
) -> tuple[list[tuple[str, h5py.Dataset]], tuple[int, ...]]:
    """The datasets that sparse rows are made of, with their paths, and the rows' shape; `name` is the group's path.

    The matrix's columns are the rows where the orientation is ``columns``.
    """
    parts = [(under(name, text(part)), _part(group, part, name)) for part in _PARTS]
    (n_values,), (n_columns,), (n_firsts,) = (dataset.shape for _, dataset in parts)
    shape = _shape(group, name)
    of_columns, by_columns = orientation == "columns", _by_columns(group, shape, n_firsts)
    if by_columns not in (None, of_columns):
        raise Refused(_OTHER_WAY[of_columns], name)
    n_rows, n_inputs = shape[::-1] if of_columns else shape
    if n_firsts != n_rows + 1 or n_values != n_columns:
        raise Refused(
            f"a sparse matrix of shape {shape} with {n_values} values, {n_columns} indices and {n_firsts} places where "
            "rows begin, which do not fit together. The file is damaged: write it anew.",
            name,
        )
    if by_columns is None and orientation is None:
        raise Refused(_EITHER_WAY.format(shape), name)
    if not 1 <= n_inputs <= MOST_COLUMNS:
        raise Refused(f"a sparse matrix of {n_inputs} columns, expected 1 to {MOST_COLUMNS}", name)
    return parts, (n_rows, n_inputs)


def _part(group: Any, part: bytes, name: str) -> h5py.Dataset:
    """A sparse matrix's values, indices, or places where rows begin."""
    dataset = held(group, part)
    stored = None if dataset is None or elsewhere(dataset) or len(dataset.shape or ()) != 1 else dtype_of(dataset)
    kinds = "iufb" if part == b"data" else "iu"
    if dataset is None or stored is None or stored.kind not in kinds or not is_plain(dataset, stored):
        what = link_of(group, part) or "no plain numbers"
        raise Refused(f"a sparse matrix whose {text(part)} are {what}. Write it anew.", name)
    return dataset


def _shape(group: Any, name: str) -> tuple[int, int]:
    """The shape that AnnData and h5sparse write as an attribute, and others as a dataset."""
    told = (attribute(group, key, _is_short) for key in (b"shape", b"h5sparse_shape"))
    shape = next((each for each in told if each is not None), None)
    dataset = held(group, b"shape") if shape is None else None
    if dataset is not None and not elsewhere(dataset) and dataset.shape == (2,):
        shape = dataset[...]
    # As signed ones, those above 2**63 are refused like negative ones.
    if shape is None or shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape.astype(np.int64) < 0).any():
        raise Refused("a sparse matrix without its shape, expected two numbers in an attribute or dataset shape", name)
    return int(shape[0]), int(shape[1])


def _by_columns(group: Any, shape: tuple[int, int], n_firsts: int) -> bool | None:
    """Whether a sparse matrix is stored by columns (CSC), as it says or else as its sizes do; None if neither does."""
    for key in (b"encoding-type", b"h5sparse_format"):
        word = attribute(group, key, _is_short)
        if word is not None:
            return "csc" in str(word)  # csc, csc_matrix; text or bytes
    if shape == (n_firsts - 1, n_firsts - 1):
        return None  # as many rows as columns
    return n_firsts != shape[0] + 1 and n_firsts == shape[1] + 1


def _is_short(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    return 0 < prod(shape) * dtype.itemsize <= _LONGEST_ATTRIBUTE
