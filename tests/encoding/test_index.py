"""Tests of the index: it shows all parts as one file, and is not mistaken for data if parts are missing."""

from contextlib import nullcontext

import h5py
import numpy as np
import pytest
from msgspec.structs import replace

from shardpress.base.formats import missing_value
from shardpress.hdf5.shard import Block
from shardpress.result.features import open_features
from shardpress.result.finished import Result, Use, result_bytes
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read
from tests.support.cases import case
from tests.support.helpers import refused
from tests.support.parts import (
    EXTRAS,
    assert_same_datasets,
    feature_rows,
    finished,
    finished_parts,
    part,
    part_paths,
    shard_id,
)


def datasets_in(file):
    return {name: item for name, item in file.items() if isinstance(item, h5py.Dataset) and name != "use"}


def test_an_index_gives_fill_values_for_rows_of_missing_parts_only(tmp_path):
    """Extras can have any kind of values and any name."""
    dtypes = {"i": "i2", "50%": ">u4", "%%": "f2", "größe und mehr": "?"}
    extras = {**{name: np.ones(3, dtype) for name, dtype in dtypes.items()}, **EXTRAS}
    directory = finished(tmp_path / "out", 3, 3, extras={0: extras, 1: extras})
    part_paths(directory)[1].unlink()
    missing = {"features": [[np.nan] * 2] * 3, "valid": [False] * 3}
    for name, values in extras.items():
        missing[name] = np.full(3, missing_value(values.dtype))
    with h5py.File(directory / "index.h5") as file:
        found = {name: item[:] for name, item in datasets_in(file).items()}
        assert_same_datasets({name: found[name][:3] for name in extras}, extras)
        assert_same_datasets({name: values[3:] for name, values in found.items()}, missing)
        for item in (file, *datasets_in(file).values()):
            assert "directory" in item.attrs["view"]


# -- dead rows ---------------------------------------------------------------------------------------------------


def with_dead_rows(directory, used):
    """Write a result of three files of 9 rows, of which some ranges are used. Return the numbers of their rows."""
    parts = [(9, part(9, 9 * i, {"y": np.arange(9 * i, 9 * i + 9)})) for i in range(3)]
    finished_parts(directory, parts, used=used)
    result = Result.open(directory, is_foreign=True)
    start_of = {each.file: 9 * i for i, each in enumerate(result.parts)}
    return np.concatenate(
        [start_of[each.file] + np.arange(used.first, used.first + used.n_rows) for each, used in result.ranges]
    )


@pytest.mark.process
def test_an_index_shows_only_live_rows_in_the_order_of_the_result(tmp_path):
    for i, used in enumerate(
        (
            {0: [(0, 9)], 1: [(2, 3)], 2: [(8, 9)]},
            {0: [(6, 9), (0, 2)], 1: [(3, 6), (6, 8), (0, 1)], 2: [(1, 8)]},
        )
    ):
        directory = tmp_path / str(i)
        rows = with_dead_rows(directory, used)
        assert rows.tolist() == [
            9 * number + row for number in used for first, end in used[number] for row in range(first, end)
        ]
        expected = {"features": feature_rows(27)[rows], "valid": rows % 5 != 1, "y": rows}
        with case(used):
            with h5py.File(directory / "index.h5") as file:
                assert_same_datasets({name: item[:] for name, item in datasets_in(file).items()}, expected)
            opened = open_features(directory, block_rows=2)
            found = {"features": opened.features, "valid": opened.valid, **opened.extras}
            assert_same_datasets({name: values.compute() for name, values in found.items()}, expected)
            shards = open_shards([str(directory)])
            np.testing.assert_array_equal(
                np.concatenate([read(Block(each, 0, each.n_rows)) for each in shards]), expected["features"]
            )


@pytest.mark.process
def test_ranges_that_overlap_or_lie_outside_are_refused(tmp_path):
    """A range that is used twice, in its part or in its shard, would count its rows twice."""
    with_dead_rows(tmp_path, {0: [(6, 9), (0, 2)], 1: [(1, 8)]})
    result = Result.open(tmp_path)
    changes = [{}, {"first": -1}, {"first": 1}, {"first": 7}, {"start": 1}, {"start": -1}, {"stop": 4}, {"stop": 2}]
    changes += [{"shard": shard_id(1)}, {"shard": shard_id(9)}]
    for change in changes:
        first, *others = result.parts
        changed = replace(first, ranges=[first.ranges[0], replace(first.ranges[1], **change)])
        data = result_bytes(lambda file: None, result.model, result.facts, [changed, *others], {}, {})
        (tmp_path / "index.h5").write_bytes(data)
        with case(change), refused(65, "part") if change else nullcontext():
            Result.open(tmp_path, is_foreign=True)


# -- facts about each row ----------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_index_holds_the_use_and_append_of_each_row(tmp_path):
    n_rows = 2**20 + 3
    directory = finished_parts(tmp_path / "out", [(n_rows, part(n_rows))] * 2, append_ids=[0, 1])
    result = Result.open(directory, is_foreign=True)
    np.testing.assert_array_equal(result.use(), np.repeat([Use.TRAINING, Use.LATER], n_rows))
    with h5py.File(directory / "index.h5") as file:
        np.testing.assert_array_equal(file["append_id"], np.repeat([0, 1], n_rows))
