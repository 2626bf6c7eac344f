"""Tests of extras over several shards: every shard gets the same extras, even if some shards lack them."""

import re

import h5py
import numpy as np
import pytest

from shardpress.cli import main
from shardpress.features import open_features
from shardpress.hdf5.shard import Block
from shardpress.interop.export import export
from shardpress.shards import extras as extras_module
from shardpress.shards.extras import common_dtype
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support.cases import case
from tests.support.helpers import names, numbered, write_shard
from tests.support.standin import install

LOWEST = np.iinfo(np.int64).min


@pytest.fixture
def shards(tmp_path):
    """Write a shard of 3 rows for each set of extras, and open them."""

    def opened(*extras):
        return open_shards([write_shard(tmp_path / f"{i}.h5", numbered(3), extras=r) for i, r in enumerate(extras)])

    return opened


def values(shards):
    """Return the extras of all rows by name."""
    found = [read_extras(Block(shard, 0, shard.n_rows)) for shard in shards]
    return {name: np.concatenate([each[name] for each in found]).tolist() for name in found[0]}


def test_extra_missing_in_some_shards_is_read_from_the_others(shards, caplog):
    opened = shards({"y": range(3), "id": range(3)}, {"id": range(3)}, {"y": range(2), "id": range(3)})
    assert {names(shard) for shard in opened} == {("id", "y", "y_present")}
    assert values(opened) == {
        "id": [0, 1, 2] * 3,
        "y": [0, 1, 2] + [LOWEST] * 6,
        "y_present": [True] * 3 + [False] * 6,
    }
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    paths = [shard.path for shard in opened]
    assert warning.startswith("y ")
    assert f"2 of 3 shards, file={paths[1]}, file={paths[2]} (shape (2,), expected (3,))" in warning
    assert f" {LOWEST}" in warning
    assert "y_present" in warning


@pytest.mark.process
@pytest.mark.parametrize(
    ("names_of_extras", "include", "level"),
    [
        (["y"], [], "INFO"),
        (["y", "z"], [], "INFO"),
        (["obs/y"], ["obs"], "INFO"),
        (["obs/y"], ["obs/y"], "WARNING"),
        (["y"], ["y"], "WARNING"),
    ],
)
def test_missing_extra_is_a_warning_only_if_the_user_named_it(tmp_path, caplog, names_of_extras, include, level):
    caplog.set_level("INFO", "shardpress")
    paths = []
    for i in range(3):
        extras = {"obs/id": range(3)}
        if i == 1:
            extras |= dict.fromkeys(names_of_extras, range(3))
        paths.append(write_shard(tmp_path / f"{i}.h5", numbered(3), extras=extras))
    opened = open_shards(paths, include=include)
    assert {"y", "y_present"} <= set(names(opened[0]))
    found = [record for record in caplog.records if "y_present" in record.message.partition("input: extras: ")[0]]
    assert [record.levelname for record in found] == [level]
    assert {record.levelname for record in caplog.records} <= {"INFO", level}


@pytest.mark.process
def test_fill_values_of_missing_extras_are_unlikely_values(shards):
    for present, missing in [
        (np.zeros(3, "f4"), np.nan),
        (np.zeros(3, "i1"), -128),
        (np.zeros(3, "u2"), 65535),
        (np.zeros(3, bool), False),
        (np.array([b"abc"] * 3), b""),
        (np.array(["text"] * 3, object), b""),
        (np.zeros(3, [("a", "i4"), ("b", "f8")]), (0, 0.0)),
        (np.zeros(3, "c8"), complex(np.nan)),
    ]:
        with case(present, missing):
            opened = shards({"y": present}, {})
            found = read_extras(Block(opened[1], 0, 3))
            np.testing.assert_array_equal(np.array(found["y"].tolist()), np.array([missing] * 3))
            assert found["y_present"].tolist() == [False] * 3


def test_shard_without_rows_lacks_no_extra(tmp_path, caplog):
    empty = write_shard(tmp_path / "0.h5", numbered(0))
    opened = open_shards([empty, write_shard(tmp_path / "1.h5", numbered(2), extras={"y": [1, 2]})])
    assert values(opened) == {"y": [1, 2]}
    assert "y_present" not in caplog.text


@pytest.mark.process
@pytest.mark.parametrize("y", [np.arange(2), np.array([b"a", b"b"], object)], ids=["numbers", "texts"])
@pytest.mark.parametrize("first", [0, 2])
def test_shard_without_rows_does_not_affect_dtypes_of_extras(tmp_path, caplog, y, first):
    codes = np.array([1, 0], "i1")
    words = np.array([b"a", b"b"])
    filled = {"y": y, "kind/codes": codes, "kind/categories": words}
    paths = []
    for i, (n, extras) in enumerate(((first, filled), (2 - first, filled))):
        if not n:
            extras = {"y": np.array([]), "kind/codes": np.array([], "i1"), "kind/categories": [1.5]}
        paths.append(write_shard(tmp_path / f"{i}.h5", numbered(n), extras=extras))
    opened = open_shards(paths, include=["kind"])
    assert values(opened) == {"y": y.tolist(), "kind": [1, 0]}
    assert {extra.categories for shard in opened for extra in shard.extras} == {None, ("a", "b")}
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"{first and 1}.h5" in warning


def test_mask_of_an_extra_takes_an_unused_name(shards):
    opened = shards({"y": range(3), "y_present": range(3)}, {"y_present": range(3)})
    assert names(opened[0]) == ("y", "y_present_", "y_present")


def test_shards_with_equal_extras_are_unchanged(shards):
    opened = shards({"y": range(3)}, {"y": range(3)})
    assert extras_module.unify_extras(opened) == opened


# -- dtypes --------------------------------------------------------------------------------------------------------


def test_common_dtype_holds_every_value_of_both():
    for dtypes, common in [
        ("i4 i8", "i8"),
        ("u1 i1", "i2"),
        (">i4 <i4", "i4"),
        ("i4 f8", "f8"),
        ("i2 f4", "f4"),
        ("i4 f4", "f8"),
        ("i8 f8", None),
        ("u8 i8", None),
        ("b1 u1", "u1"),
        ("S3 S5", "S5"),
        ("S3 O", "O"),
        ("S3 i4", None),
        ("O i4", None),
    ]:
        with case(dtypes, common):
            found = common_dtype([np.dtype(name) for name in dtypes.split()])
            # Compare names, because NumPy takes None for float64.
            assert (None if found is None else found.newbyteorder("=").str[1:]) == common


def test_enumerations_fit_only_with_equal_names():
    one, other = (h5py.enum_dtype({"a": 0, name: 1}, "i1") for name in "bc")
    assert common_dtype([one, other]) is None
    assert common_dtype([one, one]) == one


def test_extras_of_two_dtypes_are_read_in_a_common_one(shards):
    opened = shards(
        {"y": np.array([[1, 2, 3]], "i4"), "t": np.array([[b"a"], [b"b"], [b"c"]])},
        {"y": np.array([2**40, -1, 0]), "t": np.array([b"long", b"", b"er"])},
    )
    assert values(opened) == {"y": [1, 2, 3, 2**40, -1, 0], "t": [b"a", b"b", b"c", b"long", b"", b"er"]}
    assert all(read_extras(Block(shard, 0, 3))["y"].dtype == "i8" for shard in opened)


def test_extras_without_a_common_dtype_are_left_out(shards, caplog):
    opened = shards({"y": np.array([1, 2, 3])}, {"y": np.array([b"a", b"b", b"c"])})
    first, second = (shard.path for shard in opened)
    assert re.search(rf"int64 .*file={re.escape(first)} .*\|S1 .*file={re.escape(second)}", caplog.text)
    assert [shard.extras for shard in opened] == [(), ()]


# -- in the output -------------------------------------------------------------------------------------------------


def run(tmp_path, *arguments):
    return main("", ["--input", str(tmp_path / "shards"), "--epochs", "1", "--quiet", *arguments])


def test_the_manifest_says_why_labels_are_left_out(tmp_path, monkeypatch):
    install(monkeypatch)
    (tmp_path / "shards").mkdir()
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    write_shard(tmp_path / "shards" / "0.h5", rows, extras={"y": range(29)})
    assert run(tmp_path, "--output", str(tmp_path / "out")) == 0
    assert open_features(tmp_path / "out").manifest["left_out"] == {"y": "shape (29,), expected (30,)"}


@pytest.mark.compiler
def test_extras_that_differ_by_shard_are_not_in_the_output(tmp_path, monkeypatch):
    install(monkeypatch)
    (tmp_path / "shards").mkdir()
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for i, words in enumerate(({"cat": 0, "dog": 1}, {"dog": 0, "cat": 1})):
        kinds = {"y": h5py.enum_dtype(words, "i1"), "pair": np.dtype(("f4", (2 + i,))), "z": np.dtype("i4")}
        with h5py.File(write_shard(tmp_path / "shards" / f"{i}.h5", rows), "a") as file:
            for name, dtype in kinds.items():
                file.create_dataset(name, (30,), dtype)[...] = np.zeros(30, dtype)
    assert run(tmp_path, "--output", str(tmp_path / "out")) == 0
    found = open_features(tmp_path / "out")
    assert set(found.extras) == {"z"}
    export(tmp_path / "out", "hdf5")
    for path in (tmp_path / "out/index.h5", tmp_path / "out/features.h5", *(tmp_path / "out/parts").iterdir()):
        with h5py.File(path) as file:
            assert set(file) - {"append_id", "use", "shardpress"} == {"features", "valid", "z"}


@pytest.mark.compiler
@pytest.mark.parametrize("is_code", [False, True])
def test_manifest_says_why_mixed_labels_are_not_in_the_index(tmp_path, monkeypatch, is_code):
    install(monkeypatch)
    (tmp_path / "shards").mkdir()
    rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    words = {"__categories/y": [b"a"]} if is_code else {}
    write_shard(tmp_path / "shards" / "0.h5", rows, extras={"y": np.zeros(30, "i1"), **words})
    write_shard(tmp_path / "shards" / "1.h5", rows, extras={"y": np.array([b"a"] * 30)})
    assert run(tmp_path, "--output", str(tmp_path / "out")) == 0
    left_out = open_features(tmp_path / "out").manifest["left_out"]
    assert set(left_out) == {"y"}


def test_features_do_not_depend_on_extras(tmp_path, monkeypatch):
    install(monkeypatch)
    (tmp_path / "shards").mkdir()
    rows = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    found = []
    for datasets in ({}, {"y": np.arange(30), "t": np.array([b"x"] * 30), "o": np.arange(30)}):
        for i in range(3):
            extras = {"o": np.array([b"o"] * 30)} if i == 1 and datasets else datasets if i != 1 else {}
            write_shard(tmp_path / "shards" / f"{i}.h5", rows[30 * i : 30 * (i + 1)], extras=extras)
        output = str(tmp_path / f"output {len(datasets)}")
        assert run(tmp_path, "--output", output) == 0
        found.append(open_features(output))
    without, with_extras = found
    assert not without.extras
    np.testing.assert_array_equal(without.features.compute(), with_extras.features.compute())
    assert set(with_extras.extras) == {"y", "y_present", "t", "t_present"}
    with h5py.File(f"{output}/index.h5") as index:
        assert set(index) == {"features", "valid", "use", "shardpress", *with_extras.extras}
        for name in ("y", "y_present", "t_present"):
            assert index[name][:].tolist() == with_extras.extras[name].compute().tolist()
        assert index["y"][:].tolist() == [*range(30), *[LOWEST] * 30, *range(30)]
        assert index["t_present"][:].tolist() == [True] * 30 + [False] * 30 + [True] * 30
