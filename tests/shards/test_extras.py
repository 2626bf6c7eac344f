"""Tests of extras over several shards, of extras that a user names, and of codes with categories.

Every shard gets the same extras, even if some shards lack them.
"""

import h5py
import numpy as np
import pytest

from shardpress.hdf5.limits import MAX_EXTRAS, MOST_CATEGORIES
from shardpress.hdf5.shard import Block
from shardpress.shards.extras import common_dtype, why_left_out
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support.cases import case, each
from tests.support.helpers import names, numbered, refused, warnings_of, write_shard

pytestmark = pytest.mark.process

N = 4
LOWEST = np.iinfo(np.int64).min


@pytest.fixture
def shards(tmp_path):
    """Return a function that writes a shard for each set of extras, and opens them."""

    def opened(*extras, include=(), n_rows=N):
        paths = [write_shard(tmp_path / f"{i}.h5", numbered(n_rows), extras=own) for i, own in enumerate(extras)]
        return open_shards(paths, include=include)

    return opened


def values(shards):
    """Return the extras of all rows by name."""
    found = [read_extras(Block(shard, 0, shard.n_rows)) for shard in shards]
    return {name: np.concatenate([each[name] for each in found]).tolist() for name in found[0]}


def categorical(codes, categories, name="obs/kind"):
    """Return the extras of an AnnData categorical."""
    dtype = object if isinstance(categories[0], str) else None
    return {f"{name}/codes": np.array(codes, "i1"), f"{name}/categories": np.array(categories, dtype)}


def categories_of(shards):
    """Return the categories of all codes of ``kind``."""
    (categories,) = {extra.categories for shard in shards for extra in shard.extras if extra.name == "kind"}
    return [None if code < 0 else categories[code] for code in values(shards)["kind"]]


def test_extra_missing_in_some_shards_is_read_from_the_others(shards, caplog):
    opened = shards({"y": range(3), "y_present": range(3)}, {}, {"y": range(2), "y_present": range(3)}, n_rows=3)
    assert {names(shard) for shard in opened} == {("y", "y_present_", "y_present", "y_present_present")}
    found = values(opened)
    assert found["y"] == [0, 1, 2] + [LOWEST] * 6
    assert found["y_present_"] == [True] * 3 + [False] * 6
    assert found["y_present"] == [0, 1, 2] + [LOWEST] * 3 + [0, 1, 2]
    assert len(warnings_of(caplog)) == 1


@each("y", [np.arange(2), np.array([b"a", b"b"], object)])
@each("first", [0, 2])
def test_shard_without_rows_affects_no_extra(tmp_path, caplog, y, first):
    filled = {"y": y, "kind/codes": np.array([1, 0], "i1"), "kind/categories": np.array([b"a", b"b"])}
    empty = {"y": np.array([]), "kind/codes": np.array([], "i1"), "kind/categories": [1.5]}
    paths = []
    for i, n in enumerate((first, 2 - first)):
        paths.append(write_shard(tmp_path / f"{i}.h5", numbered(n), extras=filled if n else empty))
    caplog.clear()
    shards = open_shards(paths, include=["kind"])
    assert values(shards) == {"y": y.tolist(), "kind": [1, 0]}
    assert {extra.categories for shard in shards for extra in shard.extras} == {None, ("a", "b")}
    (warning,) = warnings_of(caplog)
    assert "without rows" in warning


def test_fill_values_of_missing_extras_are_unlikely_values(shards):
    present = {
        "float": np.zeros(3, "f4"),
        "integer": np.zeros(3, "i1"),
        "text": np.array(["text"] * 3, object),
        "record": np.zeros(3, [("a", "i4"), ("b", "f8")]),
    }
    found = values(shards(present, {}, n_rows=3)[1:])
    expected = {"float": np.nan, "integer": -128, "text": b"", "record": (0, 0.0)}
    for name, missing in expected.items():
        np.testing.assert_array_equal(found[name], [missing] * 3)
        assert found[f"{name}_present"] == [False] * 3


# -- dtypes --------------------------------------------------------------------------------------------------------


def test_common_dtype_holds_every_value_of_both():
    for dtypes, common in [
        ("u1 i1", "i2"),
        (">i4 <i4", "i4"),
        ("i2 f4", "f4"),
        ("i4 f4", "f8"),
        ("i8 f8", None),
        ("u8 i8", None),
        ("S3 S5", "S5"),
        ("S3 O", "O"),
        ("S3 i4", None),
    ]:
        with case(dtypes, common):
            found = common_dtype([np.dtype(name) for name in dtypes.split()])
            # Compare names, because NumPy takes None for float64.
            assert (None if found is None else found.newbyteorder("=").str[1:]) == common


def test_extras_of_two_dtypes_are_read_in_a_common_one(shards, caplog):
    """Extras without a common dtype are left out."""
    pets = [h5py.enum_dtype({"cat": i, "dog": 1 - i}, "i1") for i in range(2)]
    texts = [np.array([b"a"] * 3), np.array([b"long", b"", b"er"])]
    one = {"y": np.array([[1, 2, 3]], "i4"), "t": texts[0], "pet": np.zeros(3, pets[0]), "mixed": range(3)}
    other = {"y": np.array([2**40, -1, 0]), "t": texts[1], "pet": np.zeros(3, pets[1]), "mixed": texts[0]}
    opened = shards(one, other, n_rows=3)
    assert values(opened) == {"t": [b"a", b"a", b"a", b"long", b"", b"er"], "y": [1, 2, 3, 2**40, -1, 0]}
    assert set(why_left_out(opened)) == {"pet", "mixed"}
    assert f"int64 from file={opened[0].path} and |S1 from file={opened[1].path}" in caplog.text


# -- names ----------------------------------------------------------------------------------------------------------


@each(
    "extras, include, expected",
    [
        (["y", "deep/er/b"], ["y", "deep/er/b", "deep/er/b"], ["y", "b"]),
        (["a/y", "a/z", "b/y", "c/z"], ["a", "b", "c/z"], ["z", "a_y", "a_z", "b_y"]),
        (["obs/n", "obs/kind"], ["obs", "obs/kind"], ["kind", "n"]),
        (["obs/_index", "_index"], [], ["_index", "obs__index"]),
    ],
)
def test_named_datasets_are_extras_with_unique_names(shards, extras, include, expected):
    opened = shards({name: np.full(N, i) for i, name in enumerate(extras)}, include=include)
    assert names(opened[0]) == tuple(expected)
    assert sorted(values(opened)[name][0] for name in expected) == [*range(len(extras))]


def test_only_the_number_of_extras_that_are_not_named_is_limited(shards):
    """The first shard alone has one too many."""
    own = {f"{i:04}": range(N) for i in range(MAX_EXTRAS + 1)}
    opened = shards(own | {"obs/kind": range(N)}, {"other": range(N), "obs/kind": range(N)}, include=["obs/kind"])
    assert len(names(opened[1])) == 2 * MAX_EXTRAS + 1  # with masks
    assert "kind" in names(opened[1])
    assert [each.name for each in opened[0].left_out if each.is_missed] == [f"{MAX_EXTRAS:04}"]


@each(
    "write, phrase",
    [
        (lambda file: None, "--include"),
        (lambda file: file.create_dataset("obs/kind", data=range(3)), "shape (3,), expected (4,)"),
        (lambda file: file.create_dataset("obs/kind", (N,), h5py.ref_dtype), ""),
        (lambda file: file.__setitem__("obs", h5py.ExternalLink("other.h5", "/")), "link"),
    ],
)
def test_named_dataset_that_cannot_be_an_extra_is_an_error(tmp_path, write, phrase):
    path = write_shard(tmp_path / "x.h5", numbered(N), extras={"y": range(N)})
    with h5py.File(path, "a") as file:
        write(file)
    with refused(65, f"file={path} dataset=obs/kind: ", phrase):
        open_shards([path], include=["obs/kind"])


# -- all columns of a group ------------------------------------------------------------------------------------------


def test_usable_columns_of_a_group_are_extras(shards, caplog):
    extras = {"y": range(N), "obs/n": range(N), "obs/short": range(3), "obs/deep/x": range(N)}
    extras |= {"obs/masked/values": np.arange(N), "obs/masked/mask": np.arange(N) == 1}
    extras |= categorical([0, 1, -1, 0], ["a", "b"])
    opened = shards(extras, include=["obs"])
    assert names(opened[0]) == ("y", "kind", "n")
    assert categories_of(opened) == ["a", "b", None, "a"]
    left_out = {each.name: each.is_missed for each in opened[0].left_out}
    assert left_out == {"obs/deep": False, "obs/masked": True, "obs/short": True, "obs": False}
    assert "dataset=obs/masked: 1 values are missing" in caplog.text
    extras["obs/masked/mask"] = np.zeros(N, bool)
    assert values(shards(extras, include=["obs/masked"]))["masked"] == [*range(N)]
    with refused(65, "dataset=obs: a group"):
        shards({"obs/short": range(3), "obs/deep/kind": range(N)}, include=["obs"])


# -- categories -----------------------------------------------------------------------------------------------------


def test_shards_of_different_categories_get_the_codes_of_all(shards):
    kinds = [categorical([0, 1, -1, 0], ["b", "c"]), categorical([2, 1, 0, -1], ["a", "b", "c"])]
    opened = shards(*kinds, {}, include=["obs/kind"])
    assert categories_of(opened) == ["b", "c", None, "b", "c", "b", "a", None] + [None] * N
    assert values(opened)["kind_present"] == [True] * 2 * N + [False] * N
    many = [[f"{i} {j}" for j in range(100)] for i in range(2)]
    opened = shards(*(categorical([99, 0, -1, 1], each) for each in many), include=["obs/kind"])
    assert categories_of(opened) == [word for each in many for word in (each[99], each[0], None, each[1])]


def test_incompatible_categories_are_an_error_with_both_files(shards):
    with refused(65, "kind", "0.h5", "1.h5", "--include"):
        shards(categorical([0] * N, ["a"]), categorical([0] * N, [1]), include=["obs/kind"])


@each("code", [2, -2])
def test_code_without_a_category_is_an_error(shards, code):
    opened = shards(categorical([0, 1, code, 0], ["a", "b"]), include=["obs/kind"])
    with refused(65, "dataset=obs/kind/codes rows=2: code", f"{code}, expected -1 to 1"):
        values(opened)


@each("odd", [np.arange(MOST_CATEGORIES + 1), numbered(2), np.zeros(2, "c8"), np.array([1, 2**63], "u8")])
def test_too_many_or_invalid_categories_are_refused(tmp_path, caplog, odd):
    extras = {"obs/kind/codes": np.zeros(N, "i1"), "obs/kind/categories": odd}
    path = write_shard(tmp_path / "x.h5", numbered(N), extras=extras)
    with refused(65, f"file={path} dataset=obs/kind/categories: "):
        open_shards([path], include=["obs/kind"])
    path = write_shard(tmp_path / "x.h5", numbered(N), extras={"y": [0] * N, "__categories/y": odd, "z": [0] * N})
    assert names(open_shards([path])[0]) == ("z",)
    assert "dataset=y: " in caplog.text


def test_long_category_among_many_takes_no_memory(tmp_path):
    """If all texts had the same length, they would take a thousand times the size of the file."""
    words = np.array(["x" * 2**19, *map(str, range(10**4))], object)
    extras = {"y": range(N), "kind": [0] * N, "__categories/kind": words}
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(N), extras=extras)])
    assert names(shard) == ("y",)
