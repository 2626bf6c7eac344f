"""Write parts, and whole output directories, without a run."""

import io
from dataclasses import replace

import h5py
import numpy as np

from shardpress.base.formats import digest
from shardpress.encoding.index import write_index
from shardpress.encoding.partfile import part_file, stored_categories
from shardpress.encoding.storage import PLAIN
from shardpress.hdf5.categories import attribute_value, read_categories
from shardpress.hdf5.shard import Extra
from shardpress.output.lock import locked
from shardpress.result.facts import Append
from shardpress.result.finished import Use, result_bytes
from shardpress.result.records import (
    Entry,
    Part,
    Range,
    Request,
    ShardFacts,
    Stat,
    in_order,
    stretches_of,
)
from shardpress_kernels.network import Network
from tests.support.helpers import numbered
from tests.support.hostilemodels import model_of
from tests.support.runfacts import run_facts

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


def part_bytes(features, valid, extras, storage=PLAIN, categories=None):
    """Return the bytes of a feature shard. `categories` are those of extras of codes."""
    described = [replace(extra, categories=(categories or {}).get(extra.name)) for extra in extras_of(extras)]
    stored = np.empty(features.shape, np.dtype(storage.dtype).newbyteorder("<"))
    storage.store(features, stored)
    content = part_file(stored, valid, extras, stored_categories(described), storage.compression)
    data = b"".join(bytes(piece) for piece in content.pieces)
    assert len(data) == len(content)
    return data


def part(n_rows=3, first=0, extras=None, n_features=2):
    valid = np.arange(first, first + n_rows) % 5 != 1
    return part_bytes(feature_rows(n_rows, first, n_features), valid, extras or {})


def finished(directory, *sizes, extras=None, model=None):
    """Write a finished output directory with parts of these sizes. Each part has an extra named y."""
    parts = []
    for i, size in enumerate(sizes):
        first = sum(sizes[:i])
        part_extras = {"y": np.arange(first, first + size), **(extras or {}).get(i, {})}
        parts.append((size, part(size, first, part_extras)))
    return finished_parts(directory, parts, model)


def finished_parts(directory, parts, model=None, append_ids=None, used=None, **facts):
    """Write a finished output directory with parts, which are given by their numbers of rows and bytes.

    Each part has the rows of a file, or those of the ranges that `used` lists for it, in the order of the result.
    `append_ids` are the numbers of the appends of the parts, and `facts` are fields of `RunFacts`.
    """
    with h5py.File(io.BytesIO(parts[0][1])) as file:
        datasets = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        shapes = {name: (item.shape, item.dtype) for name, item in datasets.items()}
        stored = {name: read_categories(item.id) for name, item in datasets.items()}
    categories = {name: attribute_value(values) for name, values in stored.items() if values is not None}
    model = model or model_of(Network((4, shapes["features"][0][1])))
    numbers = append_ids or [0] * len(parts)
    found = []
    shards = []
    for i, (n_rows, data) in enumerate(parts):
        ranges = (used or {}).get(i, [(0, n_rows)] if n_rows else [])
        found.append(_part_of(i, data, ranges, len(shards)))
        for start, stop in ranges:
            shards.append(shard_facts(len(shards), stop - start, append_id=numbers[i]))
    facts.setdefault("request", Request(shards, {}, {}, {}))
    facts.setdefault("appends", [Append(0, 0, 0, 0, number, None) for number in sorted(set(numbers) - {0})])
    pairs = in_order(found, (shard.id for shard in shards))
    ids_of_appends = {shard.id: shard.append_id for shard in shards}
    rows_of_appends = [(ids_of_appends[rows.shard], rows.n_rows) for _, rows in pairs]
    use = np.repeat(
        [Use.LATER if append_id else Use.TRAINING for append_id, _ in rows_of_appends], [n for _, n in rows_of_appends]
    )
    row_shapes = {name: (dims[1:], dtype) for name, (dims, dtype) in shapes.items()}
    with locked(directory) as journal:
        for each, (_, data) in zip(found, parts, strict=True):
            journal.write(each.file, data)
        data = result_bytes(
            lambda file: write_index(
                file, stretches_of(pairs), row_shapes, categories, use.astype(np.uint8), append_ids and rows_of_appends
            ),
            model,
            run_facts(**facts),
            found,
            {},
            {},
        )
        journal.commit(data)
    return directory


def shard_id(number):
    """Return an id for the shard with this number. The ids sort like the numbers."""
    return f"{number:016x}"


def shard_facts(number, n_rows, **fields):
    return ShardFacts(shard_id(number), f"/in/{number}.h5", "X", [n_rows, 4], "f8", Stat(9, 0, 0, 0), **fields)


def _part_of(number, data, rows, first_shard):
    """Return the record of a part of which some ranges of rows are used, each as a shard of its own."""
    with h5py.File(io.BytesIO(data)) as file:
        valid = file["valid"][()]
    blake3 = digest([data])
    entry = Entry(f"parts/part-{number:06d}-{blake3[:32]}.h5", len(data), blake3)
    ranges = []
    for i, (start, stop) in enumerate(rows):
        n_bad = int(np.count_nonzero(~valid[start:stop]))
        ranges.append(Range(start, shard_id(first_shard + i), 0, stop - start, n_bad=n_bad))
    return Part(entry, len(valid), sorted(ranges, key=lambda each: each.first))


def part_paths(directory):
    """Return the files in ``parts/`` in the order of the rows."""
    return sorted((directory / "parts").iterdir())


def assert_same_datasets(arrays, expected):
    assert set(arrays) == set(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(arrays[name], values)
