"""Tests of master files: the files that they stack are read only if they are in an allowed directory."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from scripts.extract import main
from shardpress.errors import DataError
from shardpress.features import open_features
from shardpress.hdf5.child import stacked
from shardpress.shards import master
from shardpress.shards.open import open_shards
from shardpress.shards.rows import read, read_extras
from shardpress.shards.shard import Block
from tests.support import hostile
from tests.support.cases import case
from tests.support.helpers import numbered, refused, write_shard

pytestmark = pytest.mark.process

N_FILES = 11
N_ROWS = 3


@pytest.fixture
def raw(tmp_path):
    """Write the files to be stacked. They contain rows in the dataset entry/data, and the row numbers."""
    folder = tmp_path / "raw"
    folder.mkdir()
    for i in range(N_FILES):
        rows = numbered(N_ROWS, first=N_ROWS * i).reshape(N_ROWS, 2, 1)
        numbers = np.arange(N_ROWS * i, N_ROWS * (i + 1))
        write_shard(folder / f"run_{i + 1}.h5", rows, "entry/data", {"entry/y": numbers})
    return folder


def sources(folder="raw", n=N_FILES):
    """Return the virtual sources for the files of `raw`."""
    return [h5py.VirtualSource(f"{folder}/run_{i + 1}.h5", "entry/data", (N_ROWS, 2, 1)) for i in range(n)]


def virtual(path, pieces, shape=(N_FILES * N_ROWS, 2, 1), name="X", neighbours=()):
    """Write a master with a virtual dataset: `pieces` are (target slice, source)."""
    layout = h5py.VirtualLayout(shape, "i8")
    for place, source in pieces:
        layout[place] = source
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset(name, layout)
        for other in neighbours:
            file[other] = np.arange(shape[0])
    return str(path)


def rows_of(found):
    """Return the sources one after another, each with its target slice."""
    return [(slice(N_ROWS * i, N_ROWS * (i + 1)), source) for i, source in enumerate(found)]


def links(path, names, group="entry/data", dataset="/entry/data"):
    """Write a master with a group of external links. `names` maps their names to target files."""
    with h5py.File(path, "w") as file:
        for name, target in names.items():
            file[f"{group}/{name}"] = h5py.ExternalLink(target, dataset)
    return str(path)


def eiger(path):
    """Write a master like detectors of Dectris. The order by number differs from the alphabetical order."""
    return links(path, {f"data_{i + 1}": f"raw/run_{i + 1}.h5" for i in range(N_FILES)})


def read_all(shards):
    return np.concatenate([read(Block(shard, 0, shard.n_rows)) for shard in shards])


# -- stacks of rows --------------------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.parametrize("write", [lambda path: virtual(path, rows_of(sources())), eiger], ids=["virtual", "links"])
def test_shards_of_a_master_are_its_files_in_its_order(tmp_path, raw, write):
    shards = open_shards([write(tmp_path / "master.h5")], followed=[str(raw)])
    assert [Path(shard.path).name for shard in shards] == [f"run_{i + 1}.h5" for i in range(N_FILES)]
    np.testing.assert_array_equal(read_all(shards), numbered(N_FILES * N_ROWS))
    expected = open_shards([str(raw / f"run_{i + 1}.h5") for i in range(N_FILES)], "entry/data")
    assert shards == expected


def test_virtual_dataset_in_any_order_has_the_rows_of_hdf5(tmp_path, raw):
    backwards = rows_of(sources()[::-1])
    path = virtual(tmp_path / "master.h5", backwards[3:] + backwards[:3])
    with h5py.File(path) as file:
        by_hdf5 = file["X"][:].reshape(-1, 2)
    np.testing.assert_array_equal(read_all(open_shards([path], followed=[str(raw)])), by_hdf5)


def test_extras_come_from_the_files_and_not_from_the_master(tmp_path, raw, caplog):
    path = virtual(tmp_path / "master.h5", rows_of(sources()), name="entry/all", neighbours=["entry/time", "entry/n"])
    shards = open_shards([path], followed=[str(raw)])
    assert [read_extras(Block(shard, 0, 1))["y"][0] for shard in shards] == list(range(0, N_FILES * N_ROWS, N_ROWS))
    assert "dataset=entry/all: " in caplog.text
    assert ": n, time" in caplog.text


def test_master_can_be_mixed_with_shards(tmp_path, raw):
    shard = write_shard(tmp_path / "own.h5", numbered(2))
    found = open_shards([shard, eiger(tmp_path / "master.h5")], followed=[str(raw)])
    assert [found[0].path, len(found)] == [shard, 1 + N_FILES]


@pytest.mark.parametrize("neighbours", [{}, {"run": np.array(["text"] * 2, object)}], ids=["plain", "child"])
def test_file_with_its_own_rows_is_no_master(tmp_path, raw, neighbours):
    shard = write_shard(tmp_path / "own.h5", numbered(2), extras=neighbours)
    with h5py.File(shard, "a") as file:
        file["elsewhere"] = h5py.ExternalLink("raw/run_1.h5", "/entry/data")
    assert open_shards([shard], followed=[str(raw)]) == open_shards([shard])


def test_single_link_of_a_master_can_be_named(tmp_path, raw):
    (shard,) = open_shards([eiger(tmp_path / "master.h5")], "entry/data/data_2", followed=[str(raw)])
    np.testing.assert_array_equal(read_all([shard]), numbered(N_ROWS, first=N_ROWS))


def test_paths_are_relative_to_the_target_of_a_linked_master(tmp_path, raw, monkeypatch):
    for name in ("HDF5_VDS_PREFIX", "HDF5_EXT_PREFIX"):
        monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    link = tmp_path / "links" / "master.h5"
    link.parent.mkdir()
    link.symlink_to(virtual(tmp_path / "master.h5", rows_of(sources())))
    assert len(open_shards([str(link)], followed=[str(raw)])) == N_FILES


def test_missing_absolute_path_is_looked_up_next_to_the_master(tmp_path, raw):
    path = links(raw / "master.h5", {"data_1": "/detector/of/another/machine/run_2.h5"})
    (shard,) = open_shards([path], followed=[str(raw)])
    assert shard.path == str(raw / "run_2.h5")


def some_layout(rng):
    """Return the blocks of a master, mostly whole files, some moved, cut or missing, and the total number of rows."""
    pieces = []
    start = 0
    for source in rng.permutation(np.array(sources(), object))[: rng.integers(1, 5)]:
        first, stop = (0, N_ROWS) if rng.random() < 0.8 else sorted(rng.permutation(N_ROWS + 1)[:2].tolist())
        start = max(0, start + int(rng.choice([-1, 1])) * int(rng.random() < 0.1))
        end = start + stop - first
        is_whole = stop - first == N_ROWS and rng.random() < 0.5  # there are two ways to express this
        pieces.append((slice(start, end), source if is_whole else source[first:stop]))
        start = end
    return pieces, max(place.stop for place, _ in pieces) + int(rng.random() < 0.1)


def test_any_layout_is_refused_or_read_as_by_hdf5(tmp_path, raw):
    outcomes = []
    for seed in range(60):
        pieces, n_rows = some_layout(np.random.default_rng(seed))
        path = virtual(tmp_path / f"{seed}.h5", pieces, (n_rows, 2, 1))
        with h5py.File(path) as file:
            by_hdf5 = file["X"][:].reshape(n_rows, 2)
        try:
            found = read_all(open_shards([path], followed=[str(raw)]))
        except DataError:
            outcomes.append("refused")
            continue
        np.testing.assert_array_equal(found, by_hdf5)
        outcomes.append("read")
    assert 15 < outcomes.count("read") < 45


def test_doubled_percent_sign_in_a_file_name_is_one(tmp_path, raw):
    (raw / "run_1.h5").rename(raw / "100%.h5")
    source = h5py.VirtualSource("raw/100%%.h5", "entry/data", (N_ROWS, 2, 1))
    path = virtual(tmp_path / "master.h5", rows_of([source]), (N_ROWS, 2, 1))
    (shard,) = open_shards([path], followed=[str(raw)])
    assert Path(shard.path).name == "100%.h5"


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.parametrize("write", [lambda path: virtual(path, rows_of(sources())), eiger], ids=["virtual", "links"])
def test_run_over_a_master_equals_a_run_over_its_files(tmp_path, raw, write):
    path = write(tmp_path / "master.h5")
    settings = ["--epochs", "2", "--n-features", "1"]
    expected = [str(raw / f"run_{i + 1}.h5") for i in range(N_FILES)]
    runs = {"a": ["--input", path, "--follow", str(raw)], "b": ["--input", *expected, "--dataset", "entry/data"]}
    for output, flags in runs.items():
        assert main([*flags, *settings, "--output", str(tmp_path / output)]) == 0
    first, second = (open_features(tmp_path / output) for output in runs)
    assert first.features.compute().tobytes() == second.features.compute().tobytes()
    assert np.asarray(first.extras["y"]).tolist() == list(range(N_FILES * N_ROWS))
    # The master's own attributes do not matter: the results are the same.
    assert main([*runs["a"], *settings, "--output", str(tmp_path / "b")]) == 0


# -- other layouts ---------------------------------------------------------------------------------------------------

WHOLE = h5py.VirtualSource("raw/run_1.h5", "entry/data", (N_ROWS, 2, 1))


def other(i):
    return h5py.VirtualSource(f"raw/run_{i}.h5", "entry/data", (N_ROWS, 2, 1))


def test_master_without_whole_rows_is_refused(tmp_path, raw):
    for shape, pieces, phrases in [
        ((2, 2, 1), [(slice(0, 2), WHOLE[:2])], ["shape (3, 2, 1) (dense), expected (2, 2, 1) (dense)"]),
        ((2, 2, 1), [(slice(0, 2), WHOLE[1:])], ["run_1.h5"]),
        ((3, 1, 1), [(slice(0, 3), WHOLE[:, :1])], ["shape (3, 2, 1) (dense), expected (3, 1, 1) (dense)"]),
        ((4, 2, 1), [(slice(0, 3), WHOLE)], ["rows 3:4"]),
        ((4, 2, 1), [(slice(1, 4), WHOLE)], ["rows 0:1"]),
        ((7, 2, 1), [(slice(0, 3), WHOLE), (slice(4, 7), other(2))], ["rows 3:4"]),
        ((5, 2, 1), [(slice(0, 3), WHOLE), (slice(2, 5), other(2))], ["rows 2:3", "two files"]),
        ((3, 4, 1), [(np.s_[:, :2], WHOLE), (np.s_[:, 2:], other(2))], ["dataset=X"]),
        ((6, 2, 1), [(slice(0, 6, 2), WHOLE), (slice(1, 6, 2), other(2))], ["dataset=X"]),
        ((1, 3, 2, 1), [(0, WHOLE)], ["shape (3, 2, 1) (dense), expected (1, 3, 2, 1) (dense)"]),
        ((6, 2, 1), [(slice(0, 3), WHOLE), (slice(3, 6), WHOLE)], ["run_1.h5", "twice"]),
        ((3, 2, 1), [], ["0 files", "100000"]),
    ]:
        with case(shape, pieces, phrases):
            path = virtual(tmp_path / "master.h5", pieces, shape)
            with refused(65, str(tmp_path / "master.h5"), *phrases):
                open_shards([path], "X", followed=[str(raw)])


def test_master_does_not_stack_columns(tmp_path):
    """The matrices are square, so their shape does not distinguish them from their transposes."""
    for i in range(2):
        write_shard(tmp_path / f"{i}.h5", numbered(3, 3, first=3 * i))
    pieces = [(slice(3 * i, 3 * i + 3), h5py.VirtualSource(f"{i}.h5", "X", (3, 3))) for i in range(2)]
    path = virtual(tmp_path / "master.h5", pieces, (6, 3))
    with refused(65, "0.h5 dataset=X: ", "(3, 3) (columns), expected (3, 3) (dense)"):
        open_shards([path], followed=[str(tmp_path)], orientation="columns")


def test_unlimited_file_name_pattern_is_refused(tmp_path, raw):
    layout = h5py.VirtualLayout((3, 2, 1), "i8", maxshape=(None, 2, 1))
    source = h5py.VirtualSource("raw/run_%b.h5", "entry/data", (3, 2, 1))
    with h5py.File(tmp_path / "master.h5", "w") as file:
        space = h5py.h5s.create_simple((3, 2, 1), (h5py.h5s.UNLIMITED, 2, 1))
        space.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (3, 1, 1), (3, 2, 1))
        layout.dcpl.set_virtual(space, source.path.encode(), b"entry/data", source.sel.id)
        file.create_virtual_dataset("X", layout)
    with refused(65, "raw/run_%b.h5"):
        open_shards([str(tmp_path / "master.h5")], followed=[str(raw)])


def test_virtual_dataset_that_grows_with_its_files_is_refused(tmp_path):
    path = hostile.virtual(tmp_path, hostile.secret(tmp_path), unlimited=True)
    with refused(65, f"file={path} dataset=X"):
        open_shards([str(path)], followed=[str(tmp_path)])


def test_master_of_masters_is_refused(tmp_path, raw):
    virtual(raw / "inner.h5", rows_of(sources(".")))
    path = links(tmp_path / "master.h5", {"data_1": "raw/inner.h5"}, dataset="/X")
    with refused(65, "inner.h5 dataset=X: ", "virtual dataset", f" file={path}"):
        open_shards([path], followed=[str(raw)])


def test_one_of_several_stacks_must_be_named(tmp_path, raw):
    path = links(tmp_path / "master.h5", {"a/data_1": "raw/run_1.h5", "b/data_2": "raw/run_2.h5"})
    with refused(65, "entry/data/a, entry/data/b", "--dataset"):
        open_shards([path], followed=[str(raw)])
    assert len(open_shards([path], "entry/data/a", followed=[str(raw)])) == 1


def test_files_given_next_to_their_master_are_refused(tmp_path, raw):
    path = eiger(tmp_path / "master.h5")
    with refused(65, "run_1.h5: ", "twice"):
        open_shards([str(raw), path], followed=[str(raw)])


def test_refused_master_is_left_out_like_a_bad_shard(tmp_path, raw):
    path = virtual(tmp_path / "bad.h5", [(slice(0, 3), WHOLE)], (4, 2, 1))
    bad = []
    plain_shard = write_shard(tmp_path / "own.h5", numbered(2))
    (shard,) = open_shards(
        [path, plain_shard], None, lambda path, error: bad.append((str(path), str(error))), [str(raw)]
    )
    assert shard.path == plain_shard
    assert [(name, "rows 3:4" in error) for name, error in bad] == [(path, True)]


# -- without --follow ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["raw", "r\x1baw"])
def test_refusal_of_a_master_names_the_directory_to_follow(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    os.mkdir("data")
    path = virtual("data/master.h5", rows_of(sources(folder)))
    escaped = folder.replace("\x1b", "\\x1b")
    phrases = [f"11 files in data/{escaped}", f"--follow data/{escaped}"]
    with refused(65, "dataset=X: ", "virtual dataset", *phrases):
        open_shards([path])
    with refused(65, "dataset=entry/data: ", *phrases):
        links("data/master.h5", {f"data_{i + 1}": f"{folder}/run_{i + 1}.h5" for i in range(N_FILES)})
        open_shards(["data/master.h5"])


@pytest.mark.parametrize("write", [lambda path: virtual(path, rows_of(sources()), name="all"), eiger])
def test_mask_next_to_a_stack_is_not_taken_for_the_rows(tmp_path, write):
    path = write(tmp_path / "master.h5")
    with h5py.File(path, "a") as file:
        file["entry/mask"] = np.zeros((2, 2), "u4")
    with refused(65, "entry/mask (2, 2) uint32", "--dataset", "--follow"):
        open_shards([path])
    assert open_shards([path], "entry/mask")[0].shape == (2, 2)


def test_incomplete_master_is_refused_without_advice(tmp_path):
    path = virtual(tmp_path / "master.h5", [(slice(0, 3), WHOLE)], (4, 2, 1))
    with pytest.raises(DataError, match="dataset=X") as caught:
        open_shards([path])
    assert "--follow" not in str(caught.value)


# -- malicious masters -----------------------------------------------------------------------------------------------

OUTSIDE = ["/etc/passwd", "../secret.h5", "raw/../../secret.h5", "link.h5", "folder/secret.h5", "absolute", "passwd"]


@pytest.mark.parametrize("kind", ["virtual", "links"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_master_opens_nothing_outside_the_named_directories(tmp_path, kind, name):
    """Neither paths in the master nor links in the directory lead to files outside."""
    secret = hostile.secret(tmp_path)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link.h5").symlink_to(secret)
    (inside / "folder").symlink_to(tmp_path)
    (inside / "passwd").symlink_to("/etc/passwd")
    target = str(secret) if name == "absolute" else name
    if kind == "virtual":
        path = virtual(inside / "master.h5", [(slice(0, 6), h5py.VirtualSource(target, "X", (6, 2)))], (6, 2))
    else:
        path = links(inside / "master.h5", {"data_1": target}, dataset="/X")
    with hostile.opens(secret) as counts:
        with refused(77, f"file={path}", "--follow"):
            open_shards([path], followed=[str(inside)])
        with refused(65, f"file={path}"):
            open_shards([path])
    assert counts == [0]


def test_fifo_in_a_master_does_not_block(tmp_path, raw):
    os.mkfifo(raw / "fifo.h5")
    path = links(tmp_path / "master.h5", {"data_1": "raw/fifo.h5"})
    with refused(66, "fifo.h5: ", f" file={path}"):
        open_shards([path], followed=[str(raw)])


def test_missing_file_is_named_with_its_master(tmp_path, raw):
    path = links(tmp_path / "master.h5", {"data_1": "raw/gone.h5"})
    with refused(66, "gone.h5: No such file", f" file={path}"):
        open_shards([path], followed=[str(raw)])


@pytest.mark.parametrize("name", [".", "master.h5"])
def test_master_that_stacks_itself_is_refused(tmp_path, name):
    path = virtual(tmp_path / "master.h5", [(slice(0, 6), h5py.VirtualSource(name, "X", (6, 2)))], (6, 2))
    with refused(65, "master.h5 dataset=X: ", "virtual dataset"):
        open_shards([path], followed=[str(tmp_path)])


def test_too_many_links_in_a_master_are_refused(tmp_path):
    with h5py.File(tmp_path / "master.h5", "w", libver="latest") as file:
        for i in range(stacked.MOST_PIECES + 1):
            file.id.links.create_external(b"%d" % i, b"raw", b"X")
    with refused(65, "100000 external links"):
        open_shards([str(tmp_path / "master.h5")], "/", followed=[str(tmp_path)])


def test_too_many_blocks_in_a_master_are_refused(tmp_path, raw):
    path = virtual(tmp_path / "master.h5", rows_of(sources()))
    with h5py.File(path) as file, pytest.raises(stacked.Refused, match="11 blocks, expected at most 10"):
        stacked._blocks(file["X"].id, most=N_FILES - 1)


def test_missing_directory_to_follow_is_no_input(tmp_path):
    with refused(66, f"follow={tmp_path / 'raw'}"):
        open_shards([write_shard(tmp_path / "x.h5", numbered(2))], followed=[str(tmp_path / "raw")])


BLOCK = ["raw/run_1.h5", "entry/data", [[0, 3], [0, 2], [0, 1]], []]
ANSWER = {"dataset": "X", "shape": [3, 2, 1], "blocks": [BLOCK], "neighbours": []}


def block(i, value):
    return [value if j == i else each for j, each in enumerate(BLOCK)]


def test_forged_answers_about_a_stack_are_refused(tmp_path, raw, monkeypatch):
    for forged in [
        {},
        [],
        "stack",
        {**ANSWER, "dataset": 3},
        {**ANSWER, "dataset": ""},
        {**ANSWER, "shape": []},
        {**ANSWER, "shape": [-3, 2, 1]},
        {**ANSWER, "shape": [3.0, 2, 1]},
        {**ANSWER, "shape": [True, 2, 1]},
        {**ANSWER, "shape": [2**63, 2, 1]},
        {**ANSWER, "blocks": 3},
        {**ANSWER, "blocks": [3]},
        {**ANSWER, "blocks": [BLOCK[:3]]},
        {**ANSWER, "blocks": [block(0, 3)]},
        {**ANSWER, "blocks": [block(0, "")]},
        {**ANSWER, "blocks": [block(0, "a\0b")]},
        {**ANSWER, "blocks": [block(0, "\ud800")]},
        {**ANSWER, "blocks": [block(0, "x" * 5000)]},
        {**ANSWER, "blocks": [block(1, None)]},
        {**ANSWER, "blocks": [block(2, [[0, 3], [0, 2]])]},
        {**ANSWER, "blocks": [block(2, [[0, 3], [0, 2], [0]])]},
        {**ANSWER, "blocks": [block(2, [[3, 0], [0, 2], [0, 1]])]},
        {**ANSWER, "blocks": [block(2, [[0, 2**64], [0, 2], [0, 1]])]},
        {**ANSWER, "blocks": [block(3, [["0", 3]])]},
        {**ANSWER, "blocks": [BLOCK] * 100_001},
        {**ANSWER, "neighbours": [None]},
        {**ANSWER, "neighbours": 3},
        {"dataset": "X", "links": [], "neighbours": []},
        {"dataset": "X", "links": [["a", "raw/run_1.h5"]], "neighbours": []},
        {"dataset": "X", "links": [["a", "raw/run_1.h5", 3]], "neighbours": []},
        {"dataset": "X", "links": [["9" * 5000, "raw/run_1.h5", "entry/data"]], "neighbours": []},
        {"dataset": "X", "links": {"a": "b"}, "neighbours": []},
    ]:
        with case(forged):
            path = write_shard(tmp_path / "x.h5", numbered(2), extras={"text": np.array(["text"] * 2, object)})
            monkeypatch.setattr(master, "ask", lambda *_, answer=(forged, []): answer)
            with refused(65, f"file={path}"):
                open_shards([path], followed=[str(raw)])


def test_valid_answer_about_a_stack_is_accepted(tmp_path, raw, monkeypatch):
    path = write_shard(tmp_path / "x.h5", numbered(2), extras={"text": np.array(["text"] * 2, object)})
    monkeypatch.setattr(master, "ask", lambda *question: (ANSWER, []))
    assert len(open_shards([path], followed=[str(raw)])) == 1
