"""Which of a file's objects hold its rows, in what form; and where none does, what there is and what to write instead.

Attributes are read where they are short, and none as the pickle that pandas makes of some.
"""

import re
from math import prod
from typing import Any, NamedTuple, Self

import h5py
import numpy as np

from pipeline.hdf5.child.find import (
    Refused,
    dtype_of,
    elsewhere,
    identity,
    is_plain,
    link_of,
    listing,
    locate,
    objects,
    some,
)
from pipeline.hdf5.child.sparse import is_sparse, n_firsts, parts_and_shape
from pipeline.hdf5.child.stacked import is_stack
from pipeline.hdf5.forms import PREFERRED, is_number, numbers_of, parts_of, split, text, under
from pipeline.hdf5.limits import MOST_COLUMNS

__all__ = ["Rows", "choose", "find"]

_MATLAB = b"MATLAB_class"  # an attribute that MATLAB writes to every array
_OTHERS = "(rows of other files)"
_WRITE_ROWS = "Write them as one array of two dimensions"
_IN_THE_ROOT = (
    "a sparse matrix in the root group, expected one in a group of its own, beside which labels may lie. Write it "
    "there (X/data, X/indices, X/indptr, X/shape)."
)
_BLOCK = re.compile(r"block[0-9]+_values")  # columns of one type in a pandas frame of the fixed format


class Rows(NamedTuple):
    """What holds the rows."""

    name: str  # its path
    parent: Any  # the group that it lies in
    form: str  # as in `pipeline.hdf5.forms`
    parts: list[tuple[str, h5py.Dataset]]  # with their paths
    shape: tuple[int, ...]  # the rows', first their number


class _Candidate(NamedTuple):
    """What may hold rows: in which form, ``none`` where it nearly does, `_OTHERS` where it stacks those of others."""

    form: str
    shape: tuple[int, ...] = ()
    dtype: str = ""
    n_rows: int = 0
    n_inputs: int = MOST_COLUMNS  # or not known, but many

    def __str__(self) -> str:
        return f"{self.shape} {self.dtype}" if self.shape else self.form

    def turned(self, orientation: str | None) -> Self:
        """With as many rows as there are if they lie along that axis."""
        if self.form != "dense":
            return self
        n_rows, *others = self.shape[:: -1 if orientation == "columns" else 1]
        return self._replace(n_rows=n_rows, n_inputs=prod(others))


# -- searching ---------------------------------------------------------------------------------------------------


def choose(file: h5py.File, orientation: str | None) -> str:
    """``X``, else the only candidate: a numeric dataset of rank 2 or more, else a table or a sparse matrix."""
    preferred = PREFERRED.encode()
    there = file.id.links.exists(preferred)
    if there and (link_of(file.id, preferred) or _candidate(h5py.h5o.open(file.id, preferred))):
        return PREFERRED
    candidates = {name: candidate for name, item in objects(file.id) if (candidate := _candidate(item))}
    obvious = _obvious(candidates, orientation)
    if len(obvious) == 1:
        return obvious[0]
    unfit = [name for name, candidate in candidates.items() if candidate.form == "none"]
    if obvious:
        raise _none_chosen({name: candidate for name, candidate in candidates.items() if candidate.form != "none"})
    # None is left but to be told what is wrong with it.
    if there:
        return PREFERRED
    if unfit or len(candidates) == 1:
        return [*unfit, *candidates][0]
    if is_sparse(file.id):
        return "/"
    raise _none_chosen(candidates, listing(file))


def _none_chosen(candidates: dict[str, _Candidate], there: str = "") -> Refused:
    listed = some([f"{name} {candidate}" for name, candidate in candidates.items()])
    return Refused(
        f"{f'candidates {listed}' if candidates else f'no candidate among {there}'}, expected a dataset "
        f"{PREFERRED!r} or exactly one numeric dataset of rank 2 or more. Name it with --dataset."
    )


def _candidate(item: Any) -> _Candidate | None:
    if is_stack(item):  # a detector's, beside which its mask of pixels may be the only numbers of the file's own
        return _Candidate(_OTHERS)
    if isinstance(item, h5py.h5g.GroupID):
        if is_sparse(item):
            return _Candidate("sparse", n_rows=n_firsts(item) - 1)
        return _Candidate("none") if _is_matlab_sparse(item) else None
    if not _is_dataset(item):
        return None
    dataset = h5py.Dataset(item)
    stored = None if elsewhere(dataset) or dataset.shape is None else dtype_of(dataset)
    if stored is None:
        return None
    if stored.fields is not None:
        numbers, words = numbers_of(stored) if dataset.ndim == 1 else None, f"records of {len(stored.fields)} fields"
        if numbers is None:
            return _Candidate("none", dataset.shape, words, *dataset.shape[:1])
        return _Candidate("table", dataset.shape, words, dataset.shape[0], numbers.n)
    return _Candidate("dense", dataset.shape, str(stored)) if dataset.ndim >= 2 and stored.kind in "uifb" else None


def _obvious(candidates: dict[str, _Candidate], orientation: str | None) -> list[str]:
    """Those that may be meant: all dense ones if one of them has several columns, else those of any form.

    A single column beside wider rows, with which it rides along, is not; nor a single number or record.
    """
    sizes = {name: candidate.turned(orientation) for name, candidate in candidates.items()}
    wider = {(split(name)[0], its.n_rows) for name, its in sizes.items() if its.n_inputs > 1}
    obvious = []
    for name, its in sizes.items():
        is_lone = its.n_rows == 1 and (its.n_inputs == 1 or its.form == "table")
        rides = its.n_inputs == 1 and (split(name)[0], its.n_rows) in wider
        # Of a pandas frame no column is more than others.
        is_block = _BLOCK.fullmatch(split(name)[1])
        if its.form != "none" and (is_block or not (is_lone or rides)):
            obvious.append(name)
    dense = [name for name in obvious if sizes[name].form in ("dense", _OTHERS)]
    return dense if any(sizes[name].n_inputs != 1 for name in dense) else obvious


# -- what a name stands for ----------------------------------------------------------------------------------------


def find(file: h5py.File, name: str, orientation: str | None) -> Rows:
    """What the path of a dataset, of a group that holds a sparse matrix, or of a pandas frame stands for, as rows.

    They lie along the first axis, or the last one where the orientation is ``columns``.
    """
    parent, here = locate(file, name)
    if isinstance(here, h5py.h5g.GroupID):
        if is_sparse(here):
            if not parts_of(name):
                raise Refused(_IN_THE_ROOT, name)
            parts, shape = parts_and_shape(here, name, orientation)
            return Rows(name, parent, "sparse", parts, shape)
        frame = _frame(here)
        if frame is None:
            raise Refused(_of_group(here, name), name)
        return find(file, under(name, frame), orientation)
    if not _is_dataset(here):
        raise Refused("a named type, expected a dataset", name)
    rows = h5py.Dataset(here)
    _check_place(file, rows, name)
    numbers = numbers_of(dtype_of(rows) or np.dtype("V1")) if rows.ndim == 1 else None
    if numbers is not None:
        _check_table(rows, name, orientation)
        return Rows(name, parent, "table", [(name, rows)], (*rows.shape, numbers.n))
    if rows.ndim == 1 and is_sparse(parent):
        raise Refused(f"rank 1, a part of the sparse matrix {split(name)[0]}: name that one", name)
    _check_rows(rows, name, orientation)
    if orientation == "columns":
        return Rows(name, parent, "columns", [(name, rows)], (rows.shape[-1], *rows.shape[:-1]))
    return Rows(name, parent, "dense", [(name, rows)], rows.shape)


def _check_place(file: h5py.File, rows: h5py.Dataset, name: str) -> None:
    # Before its shape: to tell the shape of a virtual dataset, HDF5 may open the files that it is made of.
    if elsewhere(rows):
        raise Refused(f"{elsewhere(rows)}, expected rows in the file itself", name)
    if identity(rows.id)[0] != identity(file.id)[0]:
        raise Refused("lies in another file", name)
    if rows.shape is None:
        raise Refused("an empty dataset (no shape at all), expected rows of numbers", name)


def _check_table(rows: h5py.Dataset, name: str, orientation: str | None) -> None:
    if orientation == "columns":
        raise Refused("a table of records, which are rows, expected no --orientation columns. Leave it out.", name)
    if not is_plain(rows, rows.dtype):
        raise Refused(f"{_records(rows.dtype)}, in a form that is not NumPy's. {_WRITE_ROWS}.", name)


def _check_rows(rows: h5py.Dataset, name: str, orientation: str | None) -> None:
    stored, shape = dtype_of(rows), rows.shape
    if stored is not None and stored.fields is not None:
        raise Refused(f"{_records(stored)}, expected equal numbers. {_WRITE_ROWS}: df.to_numpy() of a frame.", name)
    if rows.ndim < 2:
        raise Refused(f"shape {shape} has rank {rows.ndim}, expected rank 2 or more, rows first", name)
    if not prod(shape[:-1] if orientation == "columns" else shape[1:]):
        raise Refused(f"an empty dataset (shape {shape} has no columns), expected at least one column", name)
    if stored is None or not is_number(stored):  # those with bits that nobody uses, HDF5 reads
        raise Refused(
            f"holds {_values(rows, stored)}, expected integers, bool, or floating-point numbers that fit into 64 bits. "
            "Write them as one of these.",
            name,
        )
    if orientation is None and h5py.h5a.exists(rows.id, _MATLAB):
        raise Refused(
            f"written by MATLAB, in which it is {' x '.join(map(str, shape[::-1]))}: here the axes come the other way "
            f"round, as {shape}. Give --orientation columns to take MATLAB's rows as rows ({shape[-1]} of them), or "
            f"--orientation rows to take its columns ({shape[0]}).",
            name,
        )


def _records(stored: np.dtype) -> str:
    dtypes = {name: dtype for name, (dtype, *_) in (stored.fields or {}).items()}
    fields = [f"{name} {' x '.join(map(str, (*its.shape, its.base)))}" for name, its in dtypes.items()]
    return f"compound records of {len(fields)} fields ({some(fields)})"


def _values(rows: h5py.Dataset, dtype: np.dtype | None) -> str:
    stored = rows.id.get_type()
    if isinstance(stored, h5py.h5t.TypeFloatID):
        _, _, n_exponent, _, _ = stored.get_fields()
        return f"floating point of {stored.get_precision()} bits with {n_exponent} exponent bits"
    if dtype is None:
        return "a type that NumPy does not know"
    if h5py.check_string_dtype(dtype) is not None or dtype.kind in "SU":
        return "strings"
    return f"dtype {dtype}"


# -- groups --------------------------------------------------------------------------------------------------------


def _frame(group: Any) -> str | None:
    """The dataset that holds a pandas frame's rows: of the table format, or of the fixed one if all are of one type."""
    names = [b"table"] if group.links.exists(b"block1_values") else [b"table", b"block0_values"]
    for name in names:
        # Where it is a link, that is told when it is looked for.
        if group.links.exists(name) and (link_of(group, name) or _is_dataset(h5py.h5o.open(group, name))):
            return text(name)
    return None


def _is_dataset(item: Any) -> bool:
    return isinstance(item, h5py.h5d.DatasetID)


def _of_group(group: Any, name: str) -> str:
    candidates = {path: candidate for path, item in objects(group) if (candidate := _candidate(item))}
    listed = some([f"{under(name, path)} {candidate}" for path, candidate in candidates.items()])
    if group.links.exists(b"block1_values"):
        return f"a pandas frame of several types ({listed}). {_WRITE_ROWS}: df.to_numpy(); or name one of these."
    if _is_matlab_sparse(group):
        return f"a sparse matrix of MATLAB's, expected rows. {_WRITE_ROWS}: full(X)."
    return f"a group, expected a dataset; it holds {listed if candidates else 'nothing that could be rows'}"


def _is_matlab_sparse(group: Any) -> bool:
    return all(group.links.exists(part) for part in (b"data", b"ir", b"jc"))
