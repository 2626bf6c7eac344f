"""Write parts, and whole output directories, without a run."""

import io
from dataclasses import replace
from unittest import mock

import h5py
import numpy as np

from shardpress.encoding import index, template
from shardpress.encoding.index import index_files
from shardpress.encoding.partfile import PartMemory
from shardpress.encoding.storage import PLAIN
from shardpress.features import categories_of
from shardpress.formats import digest
from shardpress.hdf5.categories import attribute_value
from shardpress.output.lock import locked
from shardpress.shards.shard import Extra
from tests.support.helpers import numbered

EXTRAS = {
    "y": np.array([3, 1, 2], np.uint8),
    "weight": np.array([0.5, np.nan, 1], ">f8"),
    "code": np.array([b"a", b"bc", b""], "S2"),
    "name": np.array([b"one", "zwölf".encode(), b""], object),
}


def feature_rows(n_rows, first=0, n_features=2):
    return numbered(n_rows, n_features, first, np.float32)


def extras_of(arrays):
    """Return an `Extra` for each array, as in a shard."""
    return [Extra(name, np.dtype((a.dtype, a.shape[1:])) if a.ndim > 1 else a.dtype) for name, a in arrays.items()]


def part_bytes(features, valid, extras, attributes, source=None, storage=PLAIN, categories=None):
    """Return the bytes of a feature shard, from newly allocated memory. `categories` are those of extras of codes."""
    described = [replace(extra, categories=(categories or {}).get(extra.name)) for extra in extras_of(extras)]
    memory = PartMemory(*features.shape, described, storage)
    memory.features(len(features))[:] = features
    memory.store(len(features))
    return bytes(memory.file(valid, extras, attributes, source or {}))


def written_by_hdf5(values, written, attributes, source):
    """Return the bytes of a file with values that HDF5 writes without a template."""
    file = io.BytesIO()
    with h5py.File(file, "w", alignment_threshold=1, alignment_interval=4096) as out:
        for name, array in values.items():
            template._allocate(out, name, (array.shape, array.dtype))
        for name, array in written.items():
            out.create_dataset(name, data=array, dtype=h5py.string_dtype() if array.dtype.hasobject else None)
        template.describe(out, attributes)
        if source:
            template._write_source(out, source)
        for name, array in values.items():
            if array.size:
                out[name][...] = array
    return file.getvalue()


def part(n_rows=3, first=0, extras=None, attributes=None, n_features=2):
    valid = np.arange(first, first + n_rows) % 5 != 1
    return part_bytes(feature_rows(n_rows, first, n_features), valid, extras or {}, attributes or {})


def shapes_in(path):
    """Return shape and dtype of each dataset in a part, as HDF5 reads them."""
    with h5py.File(path) as file:
        return {name: (item.shape, item.dtype) for name, item in file.items() if isinstance(item, h5py.Dataset)}


def index_of(directory, files, attributes, most=1000):
    """Return the bytes of an index of parts, and write the files of the index to the directory."""
    found = categories_of(directory / files[0])
    categories = {name: attribute_value(values.tolist()) for name, values in found.items()}

    def viewed(file):
        return file, shapes_in(directory / file)

    with mock.patch.object(index, "_MOST_PARTS", most):
        for name, data in index_files(files, viewed, categories, attributes):
            (directory / name).write_bytes(data)
    return data


def finished(directory, *sizes, extras=None, most=1000, manifest=None):
    """Write a finished output directory with parts of these sizes. Each part has an extra named y."""
    parts = []
    for i, size in enumerate(sizes):
        first = sum(sizes[:i])
        part_extras = {"y": np.arange(first, first + size), **(extras or {}).get(i, {})}
        parts.append((size, part(size, first, part_extras)))
    return finished_parts(directory, parts, most, manifest)


def finished_parts(directory, parts, most=1000, manifest=None, append_ids=None):
    """Write a finished output directory with parts, which are given by their numbers of rows and bytes."""
    with locked(directory) as ledger:
        lines = []
        for i, (n_rows, data) in enumerate(parts):
            lines.append(
                {"file": f"parts/part-{i:05d}.h5", "n_rows": n_rows, "n_bytes": len(data), "blake3": digest([data])}
            )
            if append_ids is not None:
                lines[-1]["append_id"] = append_ids[i]
            ledger.replace(lines[-1]["file"], data)
        index_of(directory, [line["file"] for line in lines], {}, most)
        ledger.finish({}, {**(manifest or {}), "parts": lines})
    return directory


def assert_same_datasets(arrays, expected):
    assert set(arrays) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)
