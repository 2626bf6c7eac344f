"""Tests of extras that a user names, in any group, and of codes with categories."""

import h5py
import numpy as np
import pytest

from shardpress.cli import main
from shardpress.features import open_features
from shardpress.hdf5.child.describe import describe
from shardpress.hdf5.child.find import Refused
from shardpress.hdf5.shard import Block
from shardpress.interop.export import export
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support.cases import case
from tests.support.helpers import names, numbered, refused, write_shard
from tests.support.logged import mentions
from tests.support.standin import install

pytestmark = pytest.mark.process

N = 4


def categorical(codes, categories, name="obs/kind"):
    """Return the extras of an AnnData categorical."""
    texts = isinstance(categories[0], str)
    stored = np.array(categories, object if texts else None)
    return {f"{name}/codes": np.array(codes, "i1"), f"{name}/categories": stored}


def earlier(codes, categories):
    """Return the extras of a categorical as AnnData wrote it before version 0.7."""
    return {"obs/kind": np.array(codes, "i1"), "obs/__categories/kind": np.array(categories, object)}


@pytest.fixture
def shards(tmp_path):
    """Write a shard of N rows for each set of extras, and open them with the named datasets."""

    def opened(*extras, include=("obs/kind",)):
        paths = [write_shard(tmp_path / f"{i}.h5", numbered(N), extras=r) for i, r in enumerate(extras)]
        return open_shards(paths, include=include)

    return opened


def values(shards, name):
    return [value for shard in shards for value in read_extras(Block(shard, 0, N))[name].tolist()]


def values_of(shards):
    return values(shards, "kind")


def categories_of(shards, name="kind"):
    """Return the categories of all codes."""
    (categories,) = {extra.categories for shard in shards for extra in shard.extras if extra.name == name}
    return [None if code < 0 else categories[code] for code in values(shards, name)]


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_named_datasets_are_extras_in_any_group(shards):
    extras = {"y": range(N), "labels/a": range(10, 14), "deep/er/b": np.zeros((N, 1))}
    opened = shards(extras, include=["labels/a", "deep/er/b"])
    assert names(opened[0]) == ("y", "a", "b")
    assert values(opened, "a") == [10, 11, 12, 13]


def test_extra_can_be_named_explicitly(shards):
    assert names(shards({"y": range(N)}, include=["y"])[0]) == ("y",)


def test_dataset_named_twice_is_one_extra(shards):
    assert names(shards({"obs/kind": range(N)}, include=["obs/kind", "obs/kind"])[0]) == ("kind",)


def test_named_extras_precede_the_limit_on_their_number(shards, monkeypatch, caplog):
    monkeypatch.setattr("shardpress.shards.extras.MAX_EXTRAS", 1)
    opened = shards({"a": range(N), "b": range(N), "obs/kind": range(N)}, {"a": range(N), "obs/kind": range(N)})
    assert names(opened[1]) == ("a", "kind")
    assert "1 more" in caplog.text


def test_equal_names_of_extras_are_prefixed_with_their_group(shards):
    extras = {"y": range(N), "a/y": range(1, 5), "a/z": range(2, 6), "b/z": range(3, 7)}
    opened = shards(extras, include=["a/y", "a/z", "b/z"])
    assert names(opened[0]) == ("y", "a_y", "a_z", "b_z")
    assert [values(opened, name)[0] for name in names(opened[0])] == [0, 1, 2, 3]


def test_named_dataset_that_does_not_exist_is_an_error(shards):
    extras = {"y": range(N), "obs/age": range(N), **categorical([0] * N, ["a"], "obs/type"), "short": range(3)}
    with refused(65, "0.h5 dataset=obs/kind: ", "obs/age, obs/type, ", ", y", "--include"):
        shards(extras, extras)


def test_named_extra_can_be_missing_in_some_shards(shards, caplog):
    opened = shards({"obs/kind": range(N)}, {}, include=["obs/kind"])
    assert names(opened[0]) == ("kind", "kind_present")
    assert values(opened, "kind_present") == [True] * N + [False] * N
    assert "1 of 2 shards" in caplog.text


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"data": range(3)}, "shape (3,), expected (4,)"),
        ({"data": 5}, "single value"),
        ({"shape": (N,), "dtype": h5py.ref_dtype}, ""),
        ({"shape": (N,), "dtype": "i4"}, "never written"),
    ],
)
def test_named_dataset_that_cannot_be_an_extra_is_an_error(tmp_path, options, phrase):
    path = write_shard(tmp_path / "x.h5", numbered(N))
    with h5py.File(path, "a") as file:
        file.create_dataset("obs/kind", **options)
    with refused(65, f"file={path} dataset=obs/kind: ", phrase):
        open_shards([path], include=["obs/kind"])


@pytest.mark.parametrize("link", [h5py.SoftLink("/y"), h5py.ExternalLink("other.h5", "/y")])
@pytest.mark.parametrize("place", ["obs", "obs/kind"])
def test_links_to_named_datasets_are_refused(tmp_path, link, place):
    path = write_shard(tmp_path / "x.h5", numbered(N), extras={"y": range(N)})
    with h5py.File(path, "a") as file:
        file[place] = link
    with refused(65, f"file={path} dataset=obs/kind: ", "link"):
        open_shards([path], include=["obs/kind"])


def test_group_without_values_for_the_rows_is_an_error(shards):
    with refused(65, "dataset=obs: a group"):
        shards({"obs/short": range(3), "obs/deep/kind": range(N)}, include=["obs"])


@pytest.mark.parametrize("values", [np.arange(N), np.array(["a", "b", "c", "d"], object)], ids=["numbers", "texts"])
def test_masked_array_is_an_extra_if_nothing_is_masked(shards, values):
    opened = shards({"obs/kind/values": values, "obs/kind/mask": np.zeros(N, bool)})
    assert [each if isinstance(each, int) else each.decode() for each in values_of(opened)] == values.tolist()
    with refused(65, "dataset=obs/kind: 1 "):
        shards({"obs/kind/values": values, "obs/kind/mask": np.arange(N) == 2})
    with refused(65, "dataset=obs/kind/mask: "):
        shards({"obs/kind/values": values, "obs/kind/mask": np.arange(N)})


# -- all columns of a group, and the names of the rows ---------------------------------------------------------------

CELLS = np.array(["c0", "c1", "ö", "c3"], object)


def observations(name="_index", **columns):
    """Return the extras of AnnData's group `obs`, with the names of the rows in the dataset `name`."""
    return {f"obs/{name}": CELLS, **{f"obs/{column}": found for column, found in columns.items()}}


def test_usable_columns_of_a_group_are_extras(shards, caplog):
    extras = {
        "obs/n": range(N),
        "obs/short": range(3),
        "obs/deep/x": range(N),
        **categorical([0, 1, -1, 0], ["a", "b"]),
    }
    extras |= {"obs/masked/values": np.arange(N), "obs/masked/mask": np.arange(N) == 1, "y": range(N)}
    opened = shards(extras, include=["obs"])
    assert names(opened[0]) == ("y", "kind", "n")
    assert categories_of(opened) == ["a", "b", None, "a"]
    left_out = {each.name: each.is_missed for each in opened[0].left_out}
    assert left_out == {"obs/deep": False, "obs/masked": True, "obs/short": True, "obs": False}
    assert "dataset=obs/masked: 1 values are missing" in caplog.text


def test_paths_in_an_included_group_are_one_extra(shards):
    extras = {"obs/n": range(N), **categorical([0] * N, ["a"])}
    for include in (["obs", "obs/kind"], ["obs/kind", "obs"], ["obs", "obs"]):
        with case(include):
            assert set(names(shards(extras, include=include)[0])) == {"n", "kind"}


def test_group_of_the_rows_can_be_included(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(N), extras={"data/y": range(N)})
    with h5py.File(path, "a") as file:
        file.move("X", "data/X")
    (shard,) = open_shards([path], dataset="data/X", include=["data"])
    assert names(shard) == ("y",)


def test_columns_of_groups_have_different_names(shards):
    extras = {"a/y": range(N), "a/z": range(N), "b/y": range(N), "c/z": range(N)}
    assert names(shards(extras, include=["a", "b", "c/z"])[0]) == ("z", "a_y", "a_z", "b_y")


def test_columns_that_only_some_shards_have_get_a_mask(shards):
    opened = shards(observations(a=range(N), b=range(N)), observations(a=range(N)), include=["obs"])
    assert names(opened[0]) == ("_index", "a", "b", "b_present")
    assert values(opened, "b_present") == [True] * N + [False] * N


def test_columns_of_a_group_with_several_dtypes_are_left_out(shards, caplog):
    opened = shards(observations(a=range(N)), observations(a=np.full(N, "x", object)), include=["obs"])
    assert names(opened[0]) == ("_index",)
    assert "a is int64 from file=" in caplog.text


def test_names_of_rows_are_copied_by_default(shards):
    for name in ("_index", "index"):
        with case(name):
            opened = shards(observations(name, n=range(N)), include=[])
            assert names(opened[0]) == ("_index",)
            assert [each.decode() for each in values(opened, "_index")] == CELLS.tolist()
    opened = shards(observations(), {"y": range(N)}, include=[])
    assert set(names(opened[0])) == {"y", "y_present", "_index", "_index_present"}


def test_an_attribute_can_name_the_dataset_with_the_names_of_rows(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(N), extras=observations("cell_id", n=range(N)))
    with h5py.File(path, "a") as file:
        file["obs"].attrs["_index"] = "cell_id"
    assert names(open_shards([path])[0]) == ("_index",)
    assert names(open_shards([path], include=["obs"])[0]) == ("_index", "n")
    assert names(open_shards([path], include=["obs/cell_id"])[0]) == ("cell_id",)


def test_names_of_rows_of_other_matrices_are_in_the_same_group(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(N), extras=observations())
    with h5py.File(path, "a") as file:
        for dataset in ("layers/counts", "raw/X", "obsm/X_pca", "mod/X"):
            file[dataset] = numbered(N)
    for dataset in ("layers/counts", "raw/X", "obsm/X_pca"):
        with case(dataset):
            assert names(open_shards([path], dataset=dataset)[0]) == ("_index",)
    assert names(open_shards([path], dataset="mod/X")[0]) == ()


def test_names_of_rows_do_not_rename_other_extras(shards):
    extras = {**observations(), "meta/_index": range(N)}
    assert names(shards(extras, include=["meta/_index"])[0]) == ("_index", "obs__index")
    assert names(shards({**observations(), "_index": range(N)}, include=[])[0]) == ("_index", "obs__index")
    assert names(shards(extras, include=["obs/_index"])[0]) == ("_index",)


def test_unusable_names_of_rows_are_ignored(tmp_path, caplog):
    odd = {
        "short": lambda group: group.create_dataset("_index", data=["a"]),
        "soft link": lambda group: group.__setitem__("_index", h5py.SoftLink("/y")),
        "external link": lambda group: group.__setitem__("_index", h5py.ExternalLink("other.h5", "/y")),
        "elsewhere": lambda group: group.attrs.__setitem__("_index", "../y"),
        "not there": lambda group: group.attrs.__setitem__("_index", "none"),
        "number": lambda group: group.attrs.__setitem__("_index", 5),
        "group": lambda group: group.create_group("_index"),
        "references": lambda group: group.create_dataset("_index", (N,), h5py.ref_dtype),
        "unwritten": lambda group: group.create_dataset("_index", (N,), "i4"),
    }
    for name, write in odd.items():
        with case(name):
            path = write_shard(tmp_path / "x.h5", numbered(N), extras={"y": range(N)})
            with h5py.File(path, "a") as file:
                write(file.create_group("obs"))
            assert names(open_shards([path])[0]) == ("y",)
    path = write_shard(tmp_path / "x.h5", numbered(N), extras={"obs": range(N)})
    assert names(open_shards([path])[0]) == ("obs",)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# -- categories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [categorical, earlier])
def test_codes_are_read_with_their_categories(shards, write):
    opened = shards(write([1, 0, -1, 1], ["T cell", "ß"]))
    assert values(opened, "kind") == [1, 0, -1, 1]
    assert categories_of(opened) == ["ß", "T cell", None, "ß"]


@pytest.mark.parametrize("categories", [[3, 5], [0.5, 1.5]])
def test_categories_can_be_numbers(shards, categories):
    assert categories_of(shards(categorical([1, 0, -1, 1], categories))) == [categories[i] for i in (1, 0)] + [
        None,
        categories[1],
    ]


def test_shards_of_different_categories_get_the_codes_of_all(shards):
    opened = shards(categorical([0, 1, -1, 0], ["b", "c"]), categorical([2, 1, 0, -1], ["a", "b", "c"]), {})
    assert categories_of(opened) == ["b", "c", None, "b", "c", "b", "a", None] + [None] * N
    assert values(opened, "kind_present") == [True] * 2 * N + [False] * N


def test_codes_in_a_row_are_merged_across_shards(tmp_path):
    paths = [
        write_shard(
            tmp_path / f"{i}.h5",
            numbered(2, N),
            extras={"kind": np.array([[0, 1, -1, 0]]), "__categories/kind": np.array(categories, object)},
        )
        for i, categories in enumerate((["a", "b"], ["b", "c"]))
    ]
    assert categories_of(open_shards(paths, orientation="columns")) == ["a", "b", None, "a", "b", "c", None, "b"]


def test_dtype_of_codes_holds_every_code_and_none(shards):
    for dtype, n in [("u1", 3), ("i1", 200), ("<u8", 2)]:
        with case(dtype, n):
            words = np.array([str(i) for i in range(n)], object)
            opened = shards({"obs/kind/codes": np.array([1, 0, 0, 1], dtype), "obs/kind/categories": words})
            assert categories_of(opened) == ["1", "0", "0", "1"]
            (extra,) = opened[0].extras
            assert extra.resolved_fill == -1
            assert np.iinfo(extra.dtype).max >= n - 1


def test_codes_are_widened_for_many_categories(shards):
    many = [[f"{i} {j}" for j in range(100)] for i in range(3)]
    opened = shards(*(categorical([99, 0, -1, 1], each) for each in many))
    assert categories_of(opened) == [word for each in many for word in (each[99], each[0], None, each[1])]
    assert read_extras(Block(opened[0], 0, N))["kind"].dtype == np.int16


@pytest.mark.parametrize(
    "other", [categorical([0] * N, [1]), {"obs/kind": np.array(["a"] * N, object)}], ids=["numbers", "texts"]
)
def test_incompatible_categories_are_an_error_with_both_files(shards, other):
    with refused(65, "kind", "0.h5", "1.h5", "--include"):
        shards(categorical([0] * N, ["a"]), other)


def test_code_without_a_category_is_an_error(shards):
    for code in [2, 100, -2]:
        with case(code):
            opened = shards(categorical([0, 1, code, 0], ["a", "b"]))
            with refused(65, "dataset=obs/kind/codes rows=2: code", f"{code}, expected -1 to 1"):
                values(opened, "kind")


def test_too_many_or_invalid_categories_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("shardpress.hdf5.child.extras.MOST_CATEGORIES", 2)
    for i, odd in enumerate((np.arange(3), numbered(2), np.zeros(2, "c8"))):
        extras = {"obs/kind/codes": np.zeros(N, "i1"), "obs/kind/categories": odd}
        path = write_shard(tmp_path / f"{i}.h5", numbered(N), extras=extras)
        with h5py.File(path) as file, pytest.raises(Refused, match="categories"):
            describe(file.id, None, None, ["obs/kind"])


def test_too_many_categories_in_all_shards_are_left_out(shards, monkeypatch, caplog):
    monkeypatch.setattr("shardpress.hdf5.names.MOST_CATEGORIES", 3)
    extras = [{"y": [0] * N, "__categories/y": np.array(words, object)} for words in (["a", "b"], ["c", "d"])]
    opened = shards(*extras, include=[])
    assert names(opened[0]) == ()
    assert "2 categories from file=" in caplog.text
    with refused(65, "kind", "2 categories", "--include"):
        shards(categorical([0] * N, ["a", "b"]), categorical([0] * N, ["c", "d"]))


def test_long_category_among_many_takes_no_memory(tmp_path, caplog):
    """If all texts had the same length, they would take a thousand times the size of the file."""
    words = np.array(["x" * 2**19, *map(str, range(10**4))], object)
    extras = {"y": range(N), "kind": [0] * N, "__categories/kind": words, "id": [0] * N}
    path = write_shard(tmp_path / "x.h5", numbered(N), extras=extras)
    with h5py.File(path, "a") as file:
        file.create_dataset("__categories/id", (2**16,), "S1000")
    (shard,) = open_shards([path])
    assert names(shard) == ("y",)
    assert "dataset=kind: " in caplog.text
    assert "16777216 bytes" in caplog.text
    assert "dataset=id: 65536 categories of dtype |S1000" in caplog.text


def test_too_large_category_affects_only_the_extra(tmp_path, caplog):
    extras = {"y": range(N), "kind": [0] * N, "__categories/kind": np.array([1, 2**63], "u8")}
    (shard,) = open_shards([write_shard(tmp_path / "x.h5", numbered(N), extras=extras)])
    assert names(shard) == ("y",)
    assert "dataset=kind: category 9223372036854775808" in caplog.text


# -- in the output --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--overwrite"]], ids=["copied", "encoded"])
def test_codes_and_categories_are_in_every_output(tmp_path, monkeypatch, more):
    install(monkeypatch)
    (tmp_path / "shards").mkdir()
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    for i, categories in enumerate((["x", "ü"], ["ü", "z"])):
        extras = {"y": range(30), **categorical(np.arange(30) % 3 - 1, categories)}
        write_shard(tmp_path / "shards" / f"{i}.h5", rows[30 * i : 30 * i + 30], extras=extras)
    flags = ["--input", str(tmp_path / "shards"), "--output", str(tmp_path / "out"), "--epochs", "1"]
    assert main("", flags) == 0
    before = open_features(tmp_path / "out").features.compute()
    assert set(open_features(tmp_path / "out").extras) == {"y"}
    assert main("", [*flags, "--include", "obs/kind", *more]) == 0
    expected = [None, "x", "ü"] * 10 + [None, "ü", "z"] * 10
    export(tmp_path / "out", "hdf5")
    for path in (tmp_path / "out", tmp_path / "out" / "features.h5"):
        found = open_features(path)
        categories = found.categories["kind"]
        assert categories.tolist() == ["x", "ü", "z"]
        codes = found.extras["kind"].compute()
        assert [None if code < 0 else categories[code] for code in codes] == expected
        np.testing.assert_array_equal(found.features.compute(), before)
    with h5py.File(tmp_path / "out" / "index.h5") as index:
        assert index["kind"][:].tolist() == codes.tolist()
        assert [text.decode() for text in index["kind"].attrs["categories"]] == ["x", "ü", "z"]
    parts = open_shards([str(tmp_path / "out")])
    assert {extra.categories for shard in parts for extra in shard.extras if extra.name == "kind"} == {("x", "ü", "z")}
    assert not any(each.is_missed for shard in parts for each in shard.left_out)


def test_names_of_rows_are_the_index_of_the_data_frame(tmp_path, monkeypatch):
    install(monkeypatch)
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    cells = [f"cell {i}" for i in range(60)]
    extras = {"obs/_index": np.array(cells, object), **categorical(np.arange(60) % 2, ["a", "b"]), "obs/n": range(60)}
    path = write_shard(tmp_path / "x.h5", rows, extras=extras)
    flags = ["--input", path, "--output", str(tmp_path / "out"), "--epochs", "1", "--include", "obs"]
    assert main("", flags) == 0
    export(tmp_path / "out", "hdf5")
    for output in (tmp_path / "out", tmp_path / "out" / "features.h5"):
        frame = open_features(output).to_pandas().drop(columns="append_id", errors="ignore")
        assert frame.index.tolist() == cells
        assert list(frame) == [f"feature{i}" for i in range(frame.shape[1] - 3)] + ["valid", "kind", "n"]
        assert frame["kind"].tolist() == ["a", "b"] * 30


def test_naming_extras_changes_neither_scan_nor_model(tmp_path, monkeypatch, caplog):
    install(monkeypatch)
    caplog.set_level("INFO", "shardpress")
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    path = write_shard(tmp_path / "x.h5", rows, extras={"labels/y": np.arange(60), "labels/z": np.arange(60)})
    flags = ["--input", path, "--output", str(tmp_path / "out"), "--epochs", "1"]
    assert main("", flags) == 0
    before = open_features(tmp_path / "out")
    expected = before.features.compute()
    caplog.clear()
    assert main("", [*flags, "--include", "labels/y", "/labels//z"]) == 0
    found = open_features(tmp_path / "out")
    assert found.extras["z"].compute().tolist() == list(range(60))
    assert found.manifest["model"] == before.manifest["model"]
    np.testing.assert_array_equal(found.features.compute(), expected)
    assert not mentions(caplog.text, "scan")
    assert not mentions(caplog.text, "training")
