"""What the child finds: libhdf5 looks into a file that nobody trusts, and says in plain values what lies where.

Only `server` runs this, in a process that has limits and ends after one answer. What it answers is a claim, which
`layout.layout_of` and whoever asked check.
"""

from collections.abc import Sequence
from math import isfinite, prod
from typing import Any

import h5py
import numpy as np

from pipeline.hdf5.child.candidates import choose, find
from pipeline.hdf5.child.columns import find_columns
from pipeline.hdf5.child.find import Refused, attribute, elsewhere, locate
from pipeline.hdf5.child.layouts import filters_of, layout_claim
from pipeline.hdf5.child.riders import find_carried, find_riders
from pipeline.hdf5.forms import beside, normal
from pipeline.hdf5.layout import bytes_of
from pipeline.hdf5.limits import ANSWER_BYTES, MOST_ANSWER_BYTES, MOST_LEFT_OUT

__all__ = ["describe", "values"]

_TEXTS = 1024  # read at once


def describe(
    file: h5py.File,
    dataset: str | None,
    orientation: str | None = None,
    carry: Sequence[str] = (),
    has_extras: bool = True,
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Where the rows and what rides along with them lie.

    Parameters
    ----------
    file : h5py.File
    dataset : str, optional
        What holds the rows. With none: ``X``, else the only candidate.
    orientation : str, optional
        ``rows`` or ``columns``: along which axis the rows lie.
    carry : sequence of str
        Paths of what rides along wherever it lies, from the root.
    has_extras : bool
        False to look at the rows only, once something next to them has proved to be more than the child can bear.

    Returns
    -------
    dict
        ``dataset``, ``columns`` (as of `find_columns`) and ``fill_value``; ``form``, ``shape`` and ``rows``, how the
        rows lie and where: the layouts of what makes them up, as in `pipeline.hdf5.forms`; ``riders``, each with
        ``name``, ``layout``, ``categories`` and ``is_carried``; ``left_out``, as of `riders.leave_out`.
    list of ndarray
        Of each chunked layout in turn, the rows' first: offsets, sizes and filter masks of its chunks, shape
        (3, n_chunks), int64; of each one inside the metadata: its bytes. At the end the bytes of the columns' numbers.
    """
    rows = find(file, dataset if dataset is not None else choose(file, orientation), orientation)
    arrays: list[np.ndarray] = []
    layouts = [layout_claim(part, path, arrays) for path, part in rows.parts]
    riders: list[dict[str, Any]] = []
    left_out: list[list[Any]] = []
    if has_extras:
        riders, left_out = find_riders(rows.parent, rows.name, rows.shape, arrays)
    # What is named and lies beside the rows rides along once, under its own name.
    there = {beside(normal(rows.name), rider["name"]) for rider in riders}
    carried, missing = find_carried(file, [path for path in carry if path not in there], rows.shape, arrays)
    answer = {
        "dataset": rows.name,
        "columns": find_columns(file, rows, arrays),
        "fill_value": _fill_value(rows.parts[0][1]),
        "form": rows.form,
        "shape": rows.shape,
        "rows": layouts,
        "riders": riders + carried,
        "left_out": [*missing, *left_out][:MOST_LEFT_OUT],
    }
    return answer, arrays


def _fill_value(rows: h5py.Dataset) -> float | None:
    """The number in netCDF's attribute `_FillValue`, which stands for no value."""

    def fits(shape: tuple[int, ...], dtype: np.dtype) -> bool:
        return shape in ((), (1,)) and dtype.kind in "iuf" and dtype.itemsize <= 8

    value = attribute(rows.id, b"_FillValue", fits)
    number = None if value is None else value.item()
    return number if number is not None and isfinite(number) else None


def values(
    file: h5py.File, name: str, start: int, stop: int, axis: int = 0, n_texts: int = _TEXTS
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """As many of a dataset's values from `start` on along its first or last axis as fit into an answer, one at least.

    Texts are read `n_texts` at a time, since how long they are is known afterwards only.

    Returns
    -------
    dict
        ``n``, their number.
    list of ndarray
        The values as bytes, uint8; of texts their lengths, int64, before them.
    """
    dataset = h5py.Dataset(locate(file, name)[1])
    if elsewhere(dataset):
        raise Refused("its values lie elsewhere", name)
    filters_of(dataset.id.get_create_plist(), name)

    def read(first: int, n: int) -> np.ndarray:
        some = slice(first, min(stop, first + n))
        return np.moveaxis(dataset[..., some] if axis else dataset[some], axis, 0)

    if not dataset.dtype.hasobject:
        row_bytes = max(1, prod(dataset.shape) // dataset.shape[axis] * dataset.dtype.itemsize)
        rows = read(start, max(1, ANSWER_BYTES // row_bytes))
        return {"n": len(rows)}, [bytes_of(np.ascontiguousarray(rows))]
    texts: list[bytes] = []
    n_bytes = 0
    while start + len(texts) < stop and n_bytes < ANSWER_BYTES:
        more = read(start + len(texts), n_texts).reshape(-1)
        texts.extend(more)
        n_bytes += sum(map(len, more))
    if n_bytes > MOST_ANSWER_BYTES:
        raise Refused(f"texts of {n_bytes} bytes, expected {MOST_ANSWER_BYTES} at most", name)
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    return {"n": len(texts)}, [lengths, np.frombuffer(b"".join(texts), dtype=np.uint8)]
