"""What the root group of a small, plain file holds: attributes, and arrays that are stored as a whole.

Nothing is followed out of the file: links other than hard ones, external storage, virtual datasets, chunks and filters
are refused. The arrays are read by their offsets, without libhdf5. So a file costs no more memory than its own size.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pipeline.errors import DataError
from pipeline.hdf5.files import read_into
from pipeline.hdf5.layout import Layout, check_places
from pipeline.hdf5.plain.attributes import attributes_of
from pipeline.hdf5.plain.datasets import Attribute, Dataset, dataset_of
from pipeline.hdf5.plain.groups import links, root
from pipeline.hdf5.plain.headers import messages
from pipeline.hdf5.plain.metadata import NOWHERE, Metadata, expect

__all__ = ["Contents", "read_arrays", "read_contents"]


class Contents(NamedTuple):
    """The root group of an open file.

    Attributes
    ----------
    file : Metadata
    attributes : mapping of str to Attribute
        Not decoded yet: `attributes.value_of` does that.
    addresses : mapping of str to int
        Where the header of each object is, by its name.
    """

    file: Metadata
    attributes: Mapping[str, Attribute]
    addresses: Mapping[str, int]

    def dataset(self, name: str) -> Dataset:
        """Return what the header of a dataset says.

        Raises
        ------
        KeyError
            When there is no object of that name.
        Exception
            Of many kinds, when it is no dataset that is stored as a whole in the file itself.
        """
        found = dataset_of(messages(self.file, self.addresses[name]), self.file.end)
        expect(found.kind in ("contiguous", "inline"), found.place < NOWHERE, found.dtype[0][1] in "uifb")
        return found


def read_contents(descriptor: int, size: int, base: int, most_bytes: int) -> Contents:
    """Return what the root group of an open file holds.

    Parameters
    ----------
    size, base : int
        Bytes of the file, and where its superblock is, which has been checked.
    most_bytes : int
        Number of bytes of metadata and attributes to read at most.

    Raises
    ------
    OSError
        When reading fails.
    Exception
        Of many kinds, when the file is not plain.
    """
    file = Metadata(descriptor, size, base, most_bytes)
    header = root(file)
    addresses = {name.decode(): address for name, address in links(file, header).items()}
    return Contents(file, attributes_of(header), addresses)


def read_arrays(
    descriptor: int, size: int, base: int, datasets: Mapping[str, Dataset], where: str
) -> dict[str, np.ndarray]:
    """Return the values of datasets, after a check that they lie in the file and do not overlap.

    Raises
    ------
    DataError
        When they lie outside the file, overlap, or are one dataset under several names; its sentence begins with
        `where`.
    OSError
        When reading fails.
    """
    n_bytes = sum(dataset.n_bytes for dataset in datasets.values())
    if n_bytes > size:
        raise DataError(
            f"{where}: arrays of {n_bytes} bytes in a file of {size} bytes, expected each in a place of its own. The "
            "file is damaged or forged: do not use it."
        )
    check_places([_layout(name, dataset, base) for name, dataset in datasets.items()], size, where, base)
    return {name: _values(descriptor, base, dataset) for name, dataset in datasets.items()}


def _layout(name: str, dataset: Dataset, base: int) -> Layout:
    dtype = np.dtype(dataset.dtype[0])
    return Layout(name, dataset.shape, dtype, dataset.kind, base + dataset.place, data=dataset.data)


def _values(descriptor: int, base: int, dataset: Dataset) -> np.ndarray:
    """Return the values of a dataset, whose place has been checked."""
    dtype = np.dtype(dataset.dtype[0])
    # Bytes first: a bool that is neither 0 nor 1 must not reach NumPy.
    content = np.empty(dataset.n_bytes, dtype=np.uint8)
    if dataset.kind == "inline":
        content[:] = np.frombuffer(dataset.data, dtype=np.uint8)
    else:
        read_into(descriptor, content.data, base + dataset.place)
    expect(dtype.kind != "b" or content.max(initial=0) <= 1)
    return content.view(dtype).reshape(dataset.shape)
