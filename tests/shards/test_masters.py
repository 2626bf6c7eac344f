"""Tests of master files: the rows that they name are those that HDF5 reads, and each row is read once.

Sample: 12 random files of each kind, and with TEST_CASES=all 300.
"""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.hdf5.shard import Block
from shardpress.shards.inspect import inspect_files
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read_extras
from shardpress.shards.vet import Selection
from tests.support import hostile
from tests.support.cases import ALL_CASES, case, each
from tests.support.helpers import names, numbered, refused, warnings_of, whole, write_shard

pytestmark = pytest.mark.process

N_FILES = 300 if ALL_CASES else 12
STORED = [{}, {"chunks": True}, {"chunks": True, "compression": "gzip"}, {"chunks": True, "compression": "lzf"}]


def source(path, rows, dataset="X", **options):
    """Write rows, and their numbers as an extra."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "a") as file:
        file.create_dataset(dataset, data=rows, **options)
        if len(rows):
            file[f"{dataset} numbers"] = np.arange(len(rows))


def sources(folder, n_files=3):
    """Write files of 5, 6, ... rows."""
    folder.mkdir(exist_ok=True)
    files = [folder / f"x_data_{i}.h5" for i in range(n_files)]
    for i, path in enumerate(files):
        write_shard(path, 100 * i + numbered(5 + i), "entry/data/data", {"entry/data/t": range(5 + i)})
    return files


def links(path, files, group="entry/data", **extras):
    """Write a master with external links to the rows of files."""
    with h5py.File(path, "w") as file:
        for i, source_path in enumerate(files):
            target = os.path.relpath(source_path, path.parent)
            file[f"{group}/data_{i}"] = h5py.ExternalLink(target, "/entry/data/data")
        for name, values in extras.items():
            file[f"{group}/{name}"] = values
    return str(path)


def virtual(path, shape, mappings, dataset="X", **extras):
    """Write a master with a virtual dataset of mappings: slices of it, a source, and slices of the source."""
    layout = h5py.VirtualLayout(shape, "<f8")
    for place, own_source, own_place in mappings:
        layout[place] = own_source if own_place is None else own_source[own_place]
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset(dataset, layout, fillvalue=-1)
        for name, values in extras.items():
            file[name] = values
    return str(path)


def rows_of(shards):
    return np.concatenate([whole(shard) for shard in shards])


def extra_of(shards, name):
    return np.concatenate([read_extras(Block(shard, 0, shard.n_rows))[name] for shard in shards])


# -- random files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(N_FILES))
def test_rows_of_a_virtual_dataset_are_those_that_hdf5_reads(tmp_path, seed):
    """Ranges of datasets in several files, in any order, some of them in the master itself."""
    rng = np.random.default_rng(seed)
    row_shape = [(4,), (2, 3)][rng.integers(2)]
    master = tmp_path / "m" / "master.h5"
    master.parent.mkdir()
    files = [tmp_path / "m" / "a b.h5", tmp_path / "m" / "50%%.h5", tmp_path / "n" / "ä.h5", master]
    mappings = []
    first = 0
    for i in range(rng.integers(1, 8)):
        n = int(rng.integers(1, 30))
        path = files[rng.integers(len(files))]
        source(path, rng.normal(size=(n, *row_shape)), f"g/d{i}", **STORED[rng.integers(len(STORED))])
        start, stop = sorted(rng.choice(n + 1, 2, replace=False).tolist())
        name = "." if path == master else os.path.relpath(path, master.parent).replace("%%", "%%%%")
        mapped = h5py.VirtualSource(name, f"/g/d{i}", (n, *row_shape))
        is_whole = stop - start == n
        mappings.append((slice(first, first + stop - start), mapped, None if is_whole else slice(start, stop)))
        first += stop - start
    path = virtual(master, (first, *row_shape), mappings, y=rng.permutation(first), text=[f"{i}" for i in range(first)])
    shards = open_shards([path], "X")
    with h5py.File(path) as file:
        np.testing.assert_array_equal(rows_of(shards), file["X"][...].reshape(first, -1))
        assert extra_of(shards, "y").tolist() == file["y"][...].tolist()
        assert extra_of(shards, "text").tolist() == file["text"][...].tolist()
    for shard in shards:
        for row in (0, shard.n_rows - 1):
            assert read_extras(Block(shard, row, row + 1))["y"] == extra_of([shard], "y")[row]


@pytest.mark.parametrize("seed", range(N_FILES))
def test_rows_of_linked_datasets_are_in_natural_order(tmp_path, seed):
    rng = np.random.default_rng(seed)
    n_files = int(rng.integers(1, 13))
    order = rng.permutation(n_files)
    rows = [rng.normal(size=(rng.integers(1, 9), 3)) for _ in range(n_files)]
    master = tmp_path / "x_master.h5"
    n_rows = sum(map(len, rows))
    with h5py.File(master, "w") as file:
        for i in order:
            source(tmp_path / f"{i % 3}.h5", rows[i], f"rows of {i}", **STORED[rng.integers(len(STORED))])
            file[f"entry/data/data_{i}"] = h5py.ExternalLink(f"{i % 3}.h5", f"rows of {i}")
        file["entry/data/y"] = np.arange(n_rows)
        file["entry/angle"] = np.linspace(0, 1, n_rows)
        file["entry/detector/mask"] = np.zeros((3, 3))  # may be taken for rows
        file["entry/data"].attrs["NX_class"] = "NXdata"
    shards = open_shards([str(master)], include=["entry/angle"])
    np.testing.assert_array_equal(rows_of(shards), np.concatenate(rows))
    assert extra_of(shards, "y").tolist() == list(range(n_rows))
    np.testing.assert_array_equal(extra_of(shards, "angle"), np.linspace(0, 1, n_rows))


def test_datasets_that_are_stacked_are_one_row_each(tmp_path):
    """h5py's documentation shows this."""
    stored = [numbered(2, 3) + i for i in range(4)]
    for i, (rows, options) in enumerate(zip(stored, STORED, strict=True)):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            file.create_dataset("d", data=rows.astype("<f8"), **options)
    mappings = [(i, h5py.VirtualSource(f"{i}.h5", "d", (2, 3)), None) for i in range(4)]
    shards = open_shards([virtual(tmp_path / "m.h5", (4, 2, 3), mappings, y=range(4))])
    assert [shard.shape for shard in shards] == [(1, 2, 3)] * 4
    np.testing.assert_array_equal(rows_of(shards), np.reshape(stored, (4, 6)))
    assert extra_of(shards, "y").tolist() == [0, 1, 2, 3]


# -- each row once ---------------------------------------------------------------------------------------------------


def test_files_that_a_master_names_are_read_through_it_only(tmp_path, caplog):
    """Also if they cannot be read without it, and if a link to their folder is given."""
    files = sources(tmp_path / "data")
    with h5py.File(files[1], "a") as file:
        file["entry/other"] = numbered(9)  # two candidates
    links(tmp_path / "data" / "x_master.h5", files[:2], y=range(11))
    (tmp_path / "link").symlink_to("data")
    caplog.set_level("INFO", "shardpress")
    shards = open_shards([str(tmp_path / "link")])
    expected = [tmp_path / "link" / files[i].name for i in (2, 0, 1)]
    assert [shard.path for shard in shards] == list(map(str, expected))
    assert [shard.n_rows for shard in shards] == [7, 5, 6]
    assert extra_of(shards[1:], "y").tolist() == list(range(11))
    assert extra_of(shards[1:], "t").tolist() == [*range(5), *range(6)]
    assert extra_of(shards, "y_present").tolist() == [False] * 7 + [True] * 11
    assert "through" in caplog.text


def test_rows_that_are_named_twice_are_an_error_with_both_paths(tmp_path):
    files = sources(tmp_path)
    first = links(tmp_path / "a.h5", files)
    second = links(tmp_path / "b.h5", files[2:])
    with refused(65, f"file={files[2]} dataset=entry/data/data", f"file={first}", f"file={second}"):
        open_shards([first, second])
    rows = h5py.VirtualSource(files[0].name, "entry/data/data", (5, 2))
    for start in (2, 3):  # the ranges 0:3 and from `start`
        mappings = [(slice(0, 3), rows, slice(0, 3)), (slice(3, 8 - start), rows, slice(start, 5))]
        path = virtual(tmp_path / f"{start}.h5", (8 - start, 2), mappings)
        if start == 2:
            with refused(65, f"file={files[0]}", "rows=2", path):
                open_shards([path])
        else:
            np.testing.assert_array_equal(rows_of(open_shards([path])), numbered(5))


def test_a_master_is_found_through_a_link_and_in_another_folder(tmp_path, monkeypatch):
    files = sources(tmp_path / "data")
    links(tmp_path / "data" / "m.h5", files)
    (tmp_path / "links").mkdir()
    linked = tmp_path / "links" / "m.h5"
    linked.symlink_to("../data/m.h5")
    assert [shard.path for shard in open_shards([str(linked)])] == [str(path) for path in files]
    with h5py.File(tmp_path / "absolute.h5", "w") as file:
        file["X"] = h5py.ExternalLink("/nowhere/data/x_data_0.h5", "/entry/data/data")
    monkeypatch.chdir(tmp_path / "data")
    assert open_shards([os.fspath(Path("m.h5"))])[0].path == "x_data_0.h5"
    (tmp_path / "absolute.h5").rename("absolute.h5")
    np.testing.assert_array_equal(rows_of(open_shards(["absolute.h5"])), numbered(5))


# -- what is refused --------------------------------------------------------------------------------------------------

FIVE = h5py.VirtualSource("x_data_0.h5", "entry/data/data", (5, 2))
GROWING = h5py.VirtualSource("x_data_0.h5", "entry/data/data", (5, 2), maxshape=(None, 2))
UNLIMITED = slice(h5py.h5s.UNLIMITED)


@each(
    "shape, mappings",
    [
        ((6, 2), [(slice(0, 5), FIVE, None)]),
        ((6, 2), [(slice(1, 6), FIVE, None)]),
        ((10, 2), [(slice(0, 5), FIVE, None), (slice(4, 9), FIVE, None)]),
        ((10, 2), [(slice(0, 10, 2), FIVE, None)]),
        ((3, 2), [(slice(0, 3), FIVE, slice(0, 5, 2))]),
        ((5, 4), [((slice(None), slice(0, 2)), FIVE, None), ((slice(None), slice(2, 4)), FIVE, None)]),
        ((5, 1), [(slice(None), FIVE, (slice(None), slice(1, 2)))]),
        ((5, 2), [(UNLIMITED, GROWING, UNLIMITED)]),
    ],
)
def test_a_virtual_dataset_that_does_more_than_list_rows_is_refused(tmp_path, shape, mappings):
    sources(tmp_path)
    path = virtual(tmp_path / f"{len(list(tmp_path.iterdir()))}.h5", shape, mappings)
    with refused(65, f"file={path} dataset=X: a virtual dataset "):
        open_shards([path])


def test_a_pattern_of_sources_is_refused(tmp_path):
    path = tmp_path / "m.h5"
    unlimited = h5py.h5s.UNLIMITED
    space = h5py.h5s.create_simple((5, 2), (unlimited, 2))
    space.select_hyperslab((0, 0), (unlimited, 1), stride=(5, 1), block=(5, 2))
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_virtual(space, b"x_data_%b.h5", b"X", h5py.h5s.create_simple((5, 2)))
    with h5py.File(path, "w") as file:
        h5py.h5d.create(file.id, b"X", h5py.h5t.IEEE_F64LE, space, dcpl=properties)
    with refused(65, f"file={path} dataset=X", "x_data_%b.h5"):
        open_shards([str(path)])


def test_unlike_and_missing_sources_are_bad_files(tmp_path, caplog):
    """All others are read, with their extras; and the directions of a virtual dataset cannot be changed."""
    files = sources(tmp_path)
    mappings = [
        (slice(5 * i, 5 * i + 5), h5py.VirtualSource(path.name, "entry/data/data", (5, 2)), None)
        for i, path in enumerate(files)
    ]
    path = virtual(tmp_path / "m.h5", (15, 2), mappings, y=range(15))
    with refused(65, f"file={path}", "--orientation"):
        open_shards([path], orientation="columns")
    write_shard(files[0], numbered(4), "entry/data/data")
    files[1].unlink()
    bad = {}
    shards = open_shards([path], on_bad_shard=lambda bad_path, error: bad.update({bad_path: str(error)}))
    assert list(bad) == files[:2]
    assert all(path in reason for reason in bad.values())
    assert [shard.n_rows for shard in shards] == [5]
    assert extra_of(shards, "y").tolist() == list(range(10, 15))
    write_shard(files[0], numbered(5, 3), "entry/data/data")
    with refused(65, f"file={files[0]}"):
        open_shards([links(tmp_path / "x_master.h5", files[:1]), str(files[2])])
    path = virtual(tmp_path / "narrow.h5", (5, 2), [(slice(None), FIVE, (slice(None), slice(2)))])
    with refused(65, f"file={files[0]}", path):  # the first columns of a wider matrix
        open_shards([path])


def test_a_master_of_masters_is_refused(tmp_path):
    below = links(tmp_path / "below.h5", sources(tmp_path))
    above = tmp_path / "above.h5"
    with h5py.File(above, "w") as file:
        file["entry/data"] = h5py.ExternalLink("below.h5", "/entry/data")
    with refused(65, f"file={below}", f"file={above}"):
        open_shards([str(above)], "entry/data")


def test_other_files_hold_rows_and_nothing_else(tmp_path, caplog):
    """Extras and names of columns in other files are left out, and storage outside HDF5 is refused."""
    secret = hostile.secret(tmp_path)
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        hostile.add_references(file, secret)
        file["X"] = hostile.ROWS
        file["y"] = h5py.ExternalLink(secret, "/y")
    with hostile.opens(secret) as counts:
        with refused(65, f"file={path} dataset=external", "external storage"):
            open_shards([str(path)], "external")
        (shard,) = open_shards([str(path)])
        assert (names(shard), shard.columns.names) == ((), ())
    assert counts == [0]
    assert "dataset=y: " in caplog.text
    for dataset in ("link", "group/X", "/deep/er/group/X", "entry/virtual", "data/data_0", "data"):
        with case(dataset):
            np.testing.assert_array_equal(rows_of(open_shards([str(path)], dataset)), hostile.ROWS)


# -- links in a file ---------------------------------------------------------------------------------------------------


def test_soft_links_are_followed_to_named_rows_and_to_extras(tmp_path, caplog):
    path = Path(write_shard(tmp_path / "x.h5", numbered(4), "entry/detector/data", {"entry/labels/y": range(4)}))
    with h5py.File(path, "a") as file:
        file["entry/plot/rows"] = h5py.SoftLink("/entry/detector/data")
        file["entry/plot/y"] = h5py.SoftLink("../labels/y")  # HDF5 has no parents
        file["entry/plot/label"] = h5py.SoftLink("/alias/labels/y")
        file["entry/plot/loop"] = h5py.SoftLink("loop")
        file["alias"] = h5py.SoftLink("entry")
    (shard,) = open_shards([str(path)], "alias/plot/rows")
    np.testing.assert_array_equal(whole(shard), numbered(4))
    assert names(shard) == ("label",)
    assert extra_of([shard], "label").tolist() == list(range(4))
    assert sorted(warning.split(":")[0] for warning in warnings_of(caplog)) == [
        f"file={path} dataset={name}" for name in ("loop", "y")
    ]


def test_inspect_names_the_master(tmp_path):
    path = links(tmp_path / "x_master.h5", sources(tmp_path))
    (group,) = inspect_files([path], Selection(None)).files
    assert (group.n_rows, path in group.why) == (18, True)
