"""Tests of the check of the child's answer, which a forged file may have manipulated."""

import json
import os
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.errors import DataError
from shardpress.hdf5.child import describe
from shardpress.shards.rows import read, read_extras
from shardpress.shards.shard import Block
from shardpress.shards.vet import vet
from tests.support.helpers import names, numbered, refused, write_shard


@pytest.fixture
def answer(tmp_path):
    """Return a complete answer about a valid shard, for tests to forge."""
    path = write_shard(
        tmp_path / "x.h5", numbered(6), chunks=(2, 2), compression="gzip", shuffle=True, extras={"y": range(6)}
    )
    with h5py.File(path, "a") as file:
        file["X"].attrs["columns"] = ["a", "b"]
        file["__categories/y"] = np.array(list("uvwxyz"), object)
    with h5py.File(path) as file:
        facts, arrays = describe.describe(file, None)
    return path, json.loads(json.dumps(facts)), arrays


def vet_forged(monkeypatch, path, facts, arrays):
    monkeypatch.setattr("shardpress.shards.vet.ask", lambda *arguments: (facts, arrays))
    return vet(Path(path))


def test_unchanged_answer_is_accepted(answer, monkeypatch):
    shard = vet_forged(monkeypatch, *answer)
    assert (shard.shape, names(shard), shard.columns.names) == ((6, 2), ("y",), ("a", "b"))


INVALID_VALUES = [
    None,
    True,
    -1,
    2**63,
    2**64,
    1.5,
    "x",
    "\x1b\n",
    [],
    {},
    [[]],
    [None],
    [-1],
    [2**64],
    [1.5],
    ["x"],
    {"a": 1},
]


def places(node, where=()):
    """Yield every position in a tree of lists and dicts."""
    yield where
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*where, key))


def replaced_at(node, where, value):
    """Return a copy of a tree with another value at one position."""
    if not where:
        return value
    copied = dict(node) if isinstance(node, dict) else list(node)
    copied[where[0]] = replaced_at(copied[where[0]], where[1:], value)
    return copied


def test_invalid_values_in_the_answer_are_refused_or_harmless(answer, monkeypatch):
    """Vetting and reading raise nothing except `DataError`."""
    path, facts, arrays = answer
    sentences = []
    n_taken = 0
    for where in places(facts):
        for value in INVALID_VALUES:
            try:
                shard = vet_forged(monkeypatch, path, replaced_at(facts, where, value), arrays)
            except DataError as error:
                sentences.append(str(error))
            else:
                n_taken += 1
                whole = Block(shard, 0, shard.n_rows)
                with suppress(DataError):
                    read(whole), read_extras(whole)
    assert all(map(str.isprintable, sentences))
    assert len(sentences) > n_taken > 0


@pytest.mark.parametrize(
    ("row", "value", "phrase"),
    [
        (0, 0, " 0:"),
        (0, 10**6, " 1000000:"),
        (0, 2**63 - 1, " 9223372036854775807:"),
        (0, -1, "file="),
        (1, 0, None),
        (1, 2**63 - 1, "dataset=X"),
        (1, -1, "file="),
        (2, -1, "file="),
        (2, 2**32, "file="),
        (2, 3, "expected about 32"),
    ],
)
def test_chunk_outside_its_place_is_refused(answer, monkeypatch, row, value, phrase):
    path, facts, arrays = answer
    index = arrays[0].copy()
    index[row, 1] = value
    if phrase is None:
        vet_forged(monkeypatch, path, facts, [index, *arrays[1:]])
        return
    with refused(65, path, phrase):
        vet_forged(monkeypatch, path, facts, [index, *arrays[1:]])


def test_overlapping_chunks_are_refused(answer, monkeypatch):
    path, facts, arrays = answer
    index = arrays[0].copy()
    index[0, 1] = index[0, 0] + 1
    with refused(65, path, f" {index[0, 1]}"):
        vet_forged(monkeypatch, path, facts, [index, *arrays[1:]])


@pytest.mark.parametrize(
    "arrays", [[], [np.zeros((3, 2), np.int64)], [np.zeros((3, 3), np.uint8)], [np.zeros(9, np.int64)]]
)
def test_arrays_of_an_unexpected_shape_are_refused(answer, monkeypatch, arrays):
    path, facts, _ = answer
    with refused(65, f"file={path}"):
        vet_forged(monkeypatch, path, facts, arrays)


def test_size_that_deflate_cannot_reach_is_refused(answer, monkeypatch):
    path, facts, _ = answer
    n = 2**12
    rows = {**facts["rows"][0], "shape": [n, 2**14], "chunks": [1, 2**14]}
    index = np.stack([100 + np.arange(n), np.ones(n), np.zeros(n)]).astype(np.int64)
    os.truncate(path, 2**20)
    with refused(65, path, f"{n} bytes", f"{n * 2**17}", "1100 times"):
        without_names = {**facts["columns"], "names": None}
        vet_forged(monkeypatch, path, {**facts, "rows": [rows], "extras": [], "columns": without_names}, [index])
