"""Write parts, and whole output directories, without a run."""

import io
from dataclasses import replace
from unittest import mock

import h5py
import numpy as np

from shardpress.encoding import index, template
from shardpress.encoding.partfile import PartMemory
from shardpress.encoding.storage import PLAIN
from shardpress.formats import digest
from shardpress.hdf5.categories import attribute_value, read_categories
from shardpress.output.lock import locked
from shardpress.records import Entry, Keys, Part, Request, RunFacts, ShardFacts, Stat, part_key
from shardpress.result import Use, result_bytes
from shardpress.shards.shard import Extra
from shardpress_kernels.network import Network
from tests.support.helpers import numbered
from tests.support.hostilemodels import model_of

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


def finished(directory, *sizes, extras=None, most=1000, model=None):
    """Write a finished output directory with parts of these sizes. Each part has an extra named y."""
    parts = []
    for i, size in enumerate(sizes):
        first = sum(sizes[:i])
        part_extras = {"y": np.arange(first, first + size), **(extras or {}).get(i, {})}
        parts.append((size, part(size, first, part_extras)))
    return finished_parts(directory, parts, most, model)


def finished_parts(directory, parts, most=1000, model=None, append_ids=None, **facts):
    """Write a finished output directory with parts, which are given by their numbers of rows and bytes.

    An index has at most `most` parts, or views of them. `append_ids` are the numbers of the appends of the parts, and
    `facts` are fields of `RunFacts`.
    """
    model = model or model_of(Network((4, shapes_in(parts[0][1])["features"][0][1])))
    numbers = append_ids or [0] * len(parts)
    found = [_part_of(i, data, number) for i, ((_, data), number) in enumerate(zip(parts, numbers, strict=True))]
    shards = [
        ShardFacts(f"/in/{i}.h5", "X", [n_rows, 4], "f8", Stat(9, 0, 0, 0)) for i, (n_rows, _) in enumerate(parts)
    ]
    facts.setdefault("request", Request(shards, {}, {}, {}))
    facts.setdefault("appends", [{"id": number} for number in sorted(set(numbers) - {0})])
    categories = {name: attribute_value(values) for name, values in _categories_in(parts[0][1]).items()}
    use = np.repeat([Use.LATER if number else Use.TRAINING for number in numbers], [each.n_rows for each in found])
    views = []
    with locked(directory) as journal, mock.patch.object(index, "_MOST_PARTS", most):
        for each, (_, data) in zip(found, parts, strict=True):
            journal.write(each.file, data)
        files = [(each.file, shapes_in(data)) for each, (_, data) in zip(found, parts, strict=True)]
        files = index.in_views(files, lambda name, data: views.append(journal.write(name, data)))
        rows_of_appends = append_ids and [(each.append_id, each.n_rows) for each in found]
        data = result_bytes(
            lambda file: index.write_index(file, files, categories, use.astype(np.uint8), rows_of_appends),
            model,
            run_facts(views=views, **facts),
            found,
            {},
            None,
        )
        journal.commit(data)
    return directory


def run_facts(**fields):
    """Return facts about a run, which are empty by default."""
    defaults = {
        "config": {},
        "request": Request([], {}, {}, {}),
        "keys": Keys("model", "features"),
        "made": "2000-01-01 00:00:00+00:00",
        "command": "shardpress run",
        "device": "cpu",
        "versions": {},
        "storage": {},
        "bad_shards": [],
        "summary": {},
        "verification": {},
    }
    return RunFacts(**{**defaults, **fields})


def _part_of(number, data, append_id):
    """Return the record of a part of a shard with this number."""
    with h5py.File(io.BytesIO(data)) as file:
        valid = file["valid"][()]
    blake3 = digest([data])
    entry = Entry(f"parts/{part_key(number, 0)}-{blake3[:32]}.h5", len(data), blake3)
    n_rows = len(valid)
    n_bad = n_rows - int(valid.sum())
    return Part(entry, n_rows, n_bad, 0, number, f"/in/{number}.h5", "X", 0, n_rows, append_id=append_id)


def shapes_in(data):
    """Return shape and dtype of each dataset in a part, as HDF5 reads them."""
    with h5py.File(io.BytesIO(data)) as file:
        return {name: (item.shape, item.dtype) for name, item in file.items() if isinstance(item, h5py.Dataset)}


def part_paths(directory):
    """Return the files in ``parts/`` in the order of the rows."""
    return sorted((directory / "parts").iterdir())


def _categories_in(data):
    with h5py.File(io.BytesIO(data)) as file:
        found = {name: read_categories(item.id) for name, item in file.items() if isinstance(item, h5py.Dataset)}
    return {name: values for name, values in found.items() if values is not None}


def assert_same_datasets(arrays, expected):
    assert set(arrays) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)
