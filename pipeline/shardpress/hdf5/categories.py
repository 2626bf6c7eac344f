"""The attribute ``categories``, which lists the categories of a dataset of codes in the files of an output.

An attribute keeps the categories next to their codes, and every dataset of a part has one value for each row. Other
programs, such as Hugging Face's `datasets`, rely on the latter. HDF5 limits an array in an attribute to 64 KiB, so a
longer list is written as JSON, in one string of variable length, which has no such limit.
"""

import json
from collections.abc import Sequence

import h5py
import numpy as np

from shardpress.hdf5.child.find import attribute
from shardpress.hdf5.limits import MOST_CATEGORIES
from shardpress.hdf5.names import Category, text

FORMAT = "shardpress-features/1"
"""Value of the attribute ``format`` of the files that contain features."""
ATTRIBUTE = "categories"

_MOST_ARRAY = 60_000  # bytes of an array in an attribute; HDF5's limit of 64 KiB includes its dtype and shape
_MOST_JSON = 2**24  # bytes; all allowed categories fit, even if JSON escapes every character


def attribute_value(categories: Sequence[Category]) -> np.ndarray | str:
    """Return the value of the attribute: an array, or JSON if the array would be too long.

    Strings become UTF-8 strings of a fixed length, which HDF5 stores identically in every file.
    """
    stored = _stored_array(categories)
    if stored.nbytes <= _MOST_ARRAY:
        return stored
    return json.dumps(array_of(categories).tolist())


def _stored_array(categories: Sequence[Category]) -> np.ndarray:
    array = array_of(categories)
    if array.dtype.kind != "U":
        return array
    texts = [category.encode("utf-8", "surrogateescape") for category in array.tolist()]
    n_bytes = max([1, *map(len, texts)])
    return np.array(texts, h5py.string_dtype("utf-8", n_bytes))


def array_of(categories: Sequence[Category]) -> np.ndarray:
    """Return categories as an array (n_categories,) of str, or of NumPy's dtype for their numbers."""
    if all(isinstance(category, str) for category in categories):
        return np.array(categories, dtype=str)
    return np.array(categories)


def holds_features(item: h5py.h5g.GroupID) -> bool:
    """Return whether the file of an object was written by shardpress. In other files, the attribute can mean anything.

    AnnData, for example, has written references under the same name.
    """
    value = attribute(h5py.h5i.get_file_id(item), b"format", _is_text)
    return value is not None and value.item() == FORMAT.encode()


def _is_text(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Return whether this is a single string of variable length."""
    string = h5py.check_string_dtype(dtype)
    return shape == () and string is not None and string.length is None


def read_categories(dataset: h5py.h5d.DatasetID) -> list[Category] | None:
    """Return the categories in the attribute of a dataset, or None. Raise `ValueError` for invalid JSON."""
    value = attribute(dataset, ATTRIBUTE.encode(), _fits)
    if value is None:
        return None
    if value.ndim == 0:
        return _parse(value.item())
    if value.dtype.kind == "S":
        return [text(category) for category in value.tolist()]
    values: list[Category] = value.tolist()
    return values


def _fits(shape: tuple[int, ...], dtype: np.dtype) -> bool:
    if shape == ():
        return _is_text(shape, dtype)
    return len(shape) == 1 and shape[0] <= MOST_CATEGORIES and dtype.kind in "biufS" and dtype.itemsize <= _MOST_ARRAY


def _parse(stored: bytes) -> list[Category]:
    if len(stored) > _MOST_JSON:
        raise ValueError(f"categories in {len(stored)} bytes of JSON, expected at most {_MOST_JSON}")
    values = json.loads(stored)
    if not isinstance(values, list):
        raise ValueError("categories in JSON that are not a list")
    return values
