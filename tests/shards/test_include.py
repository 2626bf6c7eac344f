"""Tests of extras that a user names, in any group, and of codes with categories."""

import h5py
import numpy as np
import pytest

from shardpress.cli import main
from shardpress.features import open_features
from shardpress.hdf5.limits import MAX_EXTRAS, MOST_CATEGORIES
from shardpress.hdf5.shard import Block
from shardpress.interop.export import export
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from tests.support.cases import case, each
from tests.support.helpers import names, numbered, refused, write_shard
from tests.support.standin import install

pytestmark = pytest.mark.process

N = 4


def categorical(codes, categories, name="obs/kind"):
    """Return the extras of an AnnData categorical."""
    dtype = object if isinstance(categories[0], str) else None
    return {f"{name}/codes": np.array(codes, "i1"), f"{name}/categories": np.array(categories, dtype)}


@pytest.fixture
def shards(tmp_path):
    """Write a shard of N rows for each set of extras, and open them with the named datasets."""

    def opened(*extras, include=("obs/kind",)):
        paths = [write_shard(tmp_path / f"{i}.h5", numbered(N), extras=r) for i, r in enumerate(extras)]
        return open_shards(paths, include=include)

    return opened


def values(shards, name="kind"):
    return [value for shard in shards for value in read_extras(Block(shard, 0, shard.n_rows))[name].tolist()]


def categories_of(shards, name="kind"):
    """Return the categories of all codes."""
    (categories,) = {extra.categories for shard in shards for extra in shard.extras if extra.name == name}
    return [None if code < 0 else categories[code] for code in values(shards, name)]


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
    assert sorted(values(opened, name)[0] for name in expected) == [*range(len(extras))]


def test_named_extras_precede_the_limit_on_their_number(shards):
    half = MAX_EXTRAS // 2 + 1
    extras = [{f"{i} {j}": range(N) for j in range(half)} | {"obs/kind": range(N)} for i in range(2)]
    opened = shards(*extras)
    assert len(names(opened[1])) == 2 * MAX_EXTRAS + 1  # with masks
    assert "kind" in names(opened[1])


def test_named_dataset_that_does_not_exist_is_an_error(shards):
    extras = {"y": range(N), "obs/age": range(N), **categorical([0] * N, ["a"], "obs/type")}
    with refused(65, "0.h5 dataset=obs/kind: ", "obs/age, obs/type, ", ", y", "--include"):
        shards(extras, extras)


@each(
    "write, phrase",
    [
        (lambda file: file.create_dataset("obs/kind", data=range(3)), "shape (3,), expected (4,)"),
        (lambda file: file.create_dataset("obs/kind", (N,), h5py.ref_dtype), ""),
        (lambda file: file.__setitem__("obs/kind", h5py.SoftLink("/y")), "link"),
        (lambda file: file.__setitem__("obs", h5py.ExternalLink("other.h5", "/")), "link"),
    ],
)
def test_named_dataset_that_cannot_be_an_extra_is_an_error(tmp_path, write, phrase):
    path = write_shard(tmp_path / "x.h5", numbered(N), extras={"y": range(N)})
    with h5py.File(path, "a") as file:
        write(file)
    with refused(65, f"file={path} dataset=obs/kind: ", phrase):
        open_shards([path], include=["obs/kind"])


# -- all columns of a group, and the names of the rows ---------------------------------------------------------------

CELLS = np.array(["c0", "c1", "ö", "c3"], object)


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
    assert values(shards(extras, include=["obs/masked"]), "masked") == [*range(N)]
    with refused(65, "dataset=obs: a group"):
        shards({"obs/short": range(3), "obs/deep/kind": range(N)}, include=["obs"])


def test_names_of_rows_are_found_for_other_matrices_and_names(tmp_path):
    path = write_shard(tmp_path / "x.h5", numbered(N), extras={"obs/cell_id": CELLS, "obs/n": range(N)})
    with h5py.File(path, "a") as file:
        file["obs"].attrs["_index"] = "cell_id"
        for dataset in ("layers/counts", "raw/X", "obsm/X_pca", "mod/X"):
            file[dataset] = numbered(N)
    for dataset in ("X", "layers/counts", "raw/X", "obsm/X_pca"):
        with case(dataset):
            assert names(open_shards([path], dataset=dataset)[0]) == ("_index",)
    assert names(open_shards([path], dataset="mod/X")[0]) == ()
    assert names(open_shards([path], include=["obs"])[0]) == ("_index", "n")
    assert names(open_shards([path], include=["obs/cell_id"])[0]) == ("cell_id",)


@each(
    "write",
    [
        lambda group: group.__setitem__("_index", h5py.ExternalLink("other.h5", "/y")),
        lambda group: group.attrs.__setitem__("_index", "../y"),
    ],
)
def test_unusable_names_of_rows_are_ignored(tmp_path, caplog, write):
    path = write_shard(tmp_path / "x.h5", numbered(N), extras={"y": range(N)})
    with h5py.File(path, "a") as file:
        write(file.create_group("obs"))
    assert names(open_shards([path])[0]) == ("y",)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# -- categories -----------------------------------------------------------------------------------------------------


def test_shards_of_different_categories_get_the_codes_of_all(shards):
    opened = shards(categorical([0, 1, -1, 0], ["b", "c"]), categorical([2, 1, 0, -1], ["a", "b", "c"]), {})
    assert categories_of(opened) == ["b", "c", None, "b", "c", "b", "a", None] + [None] * N
    assert values(opened, "kind_present") == [True] * 2 * N + [False] * N
    many = [[f"{i} {j}" for j in range(100)] for i in range(2)]
    opened = shards(*(categorical([99, 0, -1, 1], each) for each in many))
    assert categories_of(opened) == [word for each in many for word in (each[99], each[0], None, each[1])]


def test_incompatible_categories_are_an_error_with_both_files(shards):
    with refused(65, "kind", "0.h5", "1.h5", "--include"):
        shards(categorical([0] * N, ["a"]), categorical([0] * N, [1]))


@each("code", [2, -2])
def test_code_without_a_category_is_an_error(shards, code):
    opened = shards(categorical([0, 1, code, 0], ["a", "b"]))
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


# -- in the output --------------------------------------------------------------------------------------------------


def test_codes_and_categories_are_in_every_output(tmp_path, monkeypatch):
    install(monkeypatch)
    (tmp_path / "shards").mkdir()
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    for i, categories in enumerate((["x", "ü"], ["ü", "z"])):
        extras = {"labels/y": range(30), "short": range(29), **categorical(np.arange(30) % 3 - 1, categories)}
        write_shard(tmp_path / "shards" / f"{i}.h5", rows[30 * i : 30 * i + 30], extras=extras)
    flags = ["--input", str(tmp_path / "shards"), "--output", str(tmp_path / "out"), "--epochs", "1"]
    assert main("", [*flags, "--include", "obs/kind", "/labels//y"]) == 0
    expected = [None, "x", "ü"] * 10 + [None, "ü", "z"] * 10
    export(tmp_path / "out", "hdf5")
    for path in (tmp_path / "out", tmp_path / "out" / "features.h5"):
        found = open_features(path)
        categories = found.categories["kind"]
        assert categories.tolist() == ["x", "ü", "z"]
        codes = found.extras["kind"].compute()
        assert [None if code < 0 else categories[code] for code in codes] == expected
        assert found.extras["y"].compute().tolist() == [*range(30)] * 2
    parts = open_shards([str(tmp_path / "out")])
    assert {extra.categories for shard in parts for extra in shard.extras if extra.name == "kind"} == {("x", "ü", "z")}
    assert not any(each.is_missed for shard in parts for each in shard.left_out)
