"""Conversion of features and extras to data frames and tables, with optional packages: pandas and pyarrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardpress.base.errors import DeviceError

INDEXES = ("_index", "index", "axis1")
"""Names of extras that hold the names of the rows: of AnnData, and of pandas frames in table and fixed format."""
VALID_COLUMN = "valid"
"""Name of the column that is false for bad rows."""


@dataclass(frozen=True)
class ColumnNames:
    """Names of the columns of a data frame."""

    features: list[str]
    index: str | None  # name of the extra that becomes the index
    extras: dict[str, str]  # names of the columns of the other extras, by the names of the extras


def name_columns(n_features: int, others: Sequence[str], ndims: Mapping[str, int]) -> ColumnNames:
    """Return the names of the columns of a data frame.

    `others` are columns that are neither features nor extras. `ndims` is the number of dimensions of each extra. The
    first extra with one dimension that is named like an index becomes the index.
    """
    index = next((name for name in INDEXES if ndims.get(name) == 1), None)
    features = [f"feature{i}" for i in range(n_features)]
    used_names = {*features, *others, *ndims}
    extras: dict[str, str] = {}
    for name in ndims:
        if name != index:
            extras[name] = _free_name(name, {*features, *others}, used_names)
    return ColumnNames(features, index, extras)


def import_pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise DeviceError(f"{error}. Data frames need the package pandas. Install it: pip install pandas.") from error
    return pandas


def import_pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DeviceError(
            f"{error}. Parquet files need the package pyarrow. Install it: pip install 'shardpress[parquet]'."
        ) from error
    return pyarrow


def data_frame(
    features: np.ndarray,
    valid: np.ndarray | None,
    extras: Mapping[str, np.ndarray],
    categories: Mapping[str, np.ndarray],
) -> Any:
    """Return a data frame with a column for each feature, for `valid` (if it is not None), and for each extra.

    The first extra that is named like an index becomes the index.
    """
    pandas = import_pandas()
    columns: dict[str, Any] = {} if valid is None else {VALID_COLUMN: valid}
    ndims = {name: values.ndim for name, values in extras.items()}
    names = name_columns(features.shape[1], list(columns), ndims)
    for name, column in names.extras.items():
        columns[column] = _column(pandas, extras[name], categories.get(name))
    index = None
    if names.index is not None:
        index = pandas.Index(_column(pandas, extras[names.index], categories.get(names.index)))
    frame = pandas.DataFrame(to_native(features), columns=names.features, index=index)
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
        return to_encodable(to_native(values))
    return _categorical(pandas, to_native(values), to_encodable(categories))


def _categorical(pandas: Any, codes: np.ndarray, categories: np.ndarray) -> Any:
    """Return a categorical, or objects if the categories are not what pandas expects: distinct, and not NaN."""
    if pandas.Index(categories).is_unique and not pandas.isna(categories).any():
        return pandas.Categorical.from_codes(codes, categories)
    return np.array([None if code < 0 else categories[code] for code in codes], dtype=object)


def to_native(values: np.ndarray) -> np.ndarray:
    """Return values in the byte order of the processor, which pandas and Arrow require."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def to_encodable(values: np.ndarray) -> np.ndarray:
    """Return strings in which bytes that are not UTF-8 are escaped, because pandas and Arrow cannot store them.

    Objects that are not strings, such as None and `pandas.NA`, are not changed.
    """
    if values.dtype.kind not in "OU":
        return values
    try:
        "".join(values.tolist()).encode()
    except (UnicodeEncodeError, TypeError):
        return np.array([_escaped(value) for value in values.tolist()], dtype=object)
    return values


def _escaped(value: object) -> object:
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()
