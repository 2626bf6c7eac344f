"""Conversion of features and extras to a data frame of pandas, which is an optional package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import DeviceError

__all__ = ["INDEXES", "data_frame", "import_pandas"]

INDEXES = ("_index", "index", "axis1")
"""Names of extras that hold the names of the rows: of AnnData, and of pandas frames in table and fixed format."""
_VALID = "valid"


def import_pandas() -> Any:
    """Import pandas. Raise `DeviceError` if it is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise DeviceError(f"{error}. Data frames need the package pandas. Install it: pip install pandas.") from error
    return pandas


def data_frame(
    features: np.ndarray,
    valid: np.ndarray | None,
    extras: Mapping[str, np.ndarray],
    categories: Mapping[str, np.ndarray],
) -> Any:
    """Return a data frame with a column for each feature, for `valid`, and for each extra.

    Parameters
    ----------
    features : ndarray of shape (n_rows, n_features)
    valid : ndarray of shape (n_rows,), bool, optional
    extras : mapping of str to ndarray
        Arrays with `n_rows` entries. The first one that is named like an index becomes the index.
    categories : mapping of str to ndarray
        Categories of the extras that are stored as codes.
    """
    pandas = import_pandas()
    columns: dict[str, Any] = {} if valid is None else {_VALID: valid}
    index_name = next((name for name in INDEXES if name in extras and extras[name].ndim == 1), None)
    names = [f"feature{i}" for i in range(features.shape[1])]
    used_names = {*names, *columns, *extras}
    for name, values in extras.items():
        if name != index_name:
            column = _free_name(name, {*names, *columns}, used_names)
            columns[column] = _column(pandas, values, categories.get(name))
    index = None
    if index_name is not None:
        index = pandas.Index(_column(pandas, extras[index_name], categories.get(index_name)))
    frame = pandas.DataFrame(_native(features), columns=names, index=index)
    return pandas.concat([frame, pandas.DataFrame(columns, index=frame.index)], axis=1)


def _free_name(name: str, columns: set[str], used_names: set[str]) -> str:
    """Return the name of a column. It differs from the name of the extra only if another column has this name."""
    if name not in columns:
        return name
    while name in used_names:
        name = f"source_{name}"
    used_names.add(name)
    return name


def _column(pandas: Any, values: np.ndarray, categories: np.ndarray | None) -> Any:
    """Return the values of a column. Codes are decoded. Arrays and records become objects."""
    if values.ndim > 1 or values.dtype.names:
        objects = np.empty(len(values), dtype=object)
        objects[:] = list(values) if values.ndim > 1 else values.tolist()
        return objects
    if categories is None:
        return _encodable(_native(values))
    return _categorical(pandas, _native(values), _encodable(categories))


def _categorical(pandas: Any, codes: np.ndarray, categories: np.ndarray) -> Any:
    """Return a categorical, or objects if the categories are not what pandas expects: distinct, and not NaN."""
    if pandas.Index(categories).is_unique and not pandas.isna(categories).any():
        return pandas.Categorical.from_codes(codes, categories)
    return np.array([None if code < 0 else categories[code] for code in codes], dtype=object)


def _native(values: np.ndarray) -> np.ndarray:
    """Return values in the byte order of the processor, which pandas requires."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _encodable(values: np.ndarray) -> np.ndarray:
    """Return strings in which bytes that are not UTF-8 are escaped, because pandas cannot store them."""
    if values.dtype.kind not in "OU":
        return values
    try:
        "".join(values.tolist()).encode()
    except UnicodeEncodeError:
        escaped = [each.encode("utf-8", "backslashreplace").decode() for each in values.tolist()]
        return np.array(escaped, dtype=object)
    return values
