"""Tests of input paths: patterns, directories and indexes name the files, and links are not followed."""

import errno
import os

import h5py
import numpy as np
import pytest

from shardpress.hdf5.files import FILES
from shardpress.shards.open import open_shards
from shardpress.shards.sources import find
from tests.support import hostile
from tests.support.cases import case, each
from tests.support.helpers import numbered, refused, whole, without_privileges, write_shard
from tests.support.hostilemodels import edit_json, forge
from tests.support.parts import feature_rows, finished, part_paths

pytestmark = pytest.mark.process


def found(*patterns):
    return [source.path.name for source in find([str(pattern) for pattern in patterns])]


# -- patterns and directories -----------------------------------------------------------------------------------------


def test_files_are_in_the_order_of_patterns_and_numbers(tmp_path):
    for name in ("part-10.h5", "part-9.h5", "part-9b.h5", "part-010.h5", "b.hdf5", "notes.txt", "more/z.h5", "a[1].h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["a[1].h5", "b.hdf5", "part-9.h5", "part-9b.h5", "part-010.h5", "part-10.h5"]
    assert found(tmp_path / "more/*", tmp_path, tmp_path / "notes.txt") == ["z.h5", *names, "notes.txt"]
    assert found(tmp_path / "part-*.h5") == names[2:]
    (tmp_path / "a1.h5").touch()
    assert found(tmp_path / "a[1].h5") == ["a[1].h5"]


@pytest.mark.parametrize("link", [os.symlink, os.link, None])
def test_file_found_twice_is_refused(tmp_path, link):
    (tmp_path / "a.h5").touch()
    patterns = [tmp_path]
    if link is None:
        patterns += [tmp_path / "*.h5"]
    else:
        link(tmp_path / "a.h5", tmp_path / "b.h5")
    with refused(65, "twice", "a.h5"):
        found(*patterns)


@each("pattern", ["nothing-*.h5", "nul\0", "texts"])
def test_pattern_without_matches_is_refused(tmp_path, pattern):
    (tmp_path / "texts").mkdir(exist_ok=True)
    (tmp_path / "texts/1.txt").touch()
    with refused(66, f"input={tmp_path}/{pattern[:3]}"):
        find([f"{tmp_path}/{pattern}"])


def test_directory_gives_files_that_begin_like_hdf5(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "shardpress")
    for name in ("a.nc", "b.h5ad", "c", ".hidden", "._a.h5", "sub/e.nc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_shard(tmp_path / name, numbered(3))
    with h5py.File(tmp_path / "f.mat", "w", userblock_size=512) as file:
        file["X"] = numbered(3)
    (tmp_path / "notes.txt").write_text("x" * 600)
    (tmp_path / "link").symlink_to("sub/e.nc")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "named.h5").touch()  # files with this suffix are not opened
    opened = []
    real_open = FILES.open
    monkeypatch.setattr(FILES, "open", lambda path: opened.append(os.path.basename(path)) or real_open(path))
    assert found(tmp_path) == ["a.nc", "b.h5ad", "c", "f.mat", "link", "named.h5"]
    assert sorted(opened) == ["a.nc", "c", "f.mat", "link", "notes.txt"]
    assert "broken, circle, fifo and 2 more" in caplog.text


def test_directory_or_link_named_like_a_shard_is_refused(tmp_path):
    (tmp_path / "in/x.h5").mkdir(parents=True)
    (tmp_path / "circle.h5").symlink_to("circle.h5")
    for name, path in (("in", "in/x.h5"), ("circle.h5", "circle.h5")):
        with case(name), refused(66, path):
            open_shards([str(tmp_path / name)])


def test_path_in_a_locked_directory_is_not_reported_as_missing(open_path):
    (open_path / "locked/in").mkdir(parents=True)
    (open_path / "locked").chmod(0)
    for pattern in (f"{open_path}/locked/in", f"{open_path}/locked/in/*.h5"):
        exit_code, sentence = without_privileges(lambda pattern=pattern: find([pattern]))
        assert exit_code == 77, sentence


@pytest.mark.parametrize(
    ("name", "number", "exit_code"),
    [("open", errno.EMFILE, 71), ("preadv", errno.EIO, 74), ("scandir", errno.EIO, 74), ("scandir", errno.EACCES, 77)],
)
def test_failure_while_looking_for_files_is_an_error_of_its_kind(tmp_path, monkeypatch, name, number, exit_code):
    write_shard(tmp_path / "a.nc", numbered(3))

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if name == "scandir" else FILES, name, fail)
    with refused(exit_code, f"{tmp_path}"):
        find([str(tmp_path)])


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Return a directory of shards next to a file that must not be read."""
    write_shard(tmp_path / "secret.h5", numbered(3))
    (tmp_path / "in/sub").mkdir(parents=True)
    write_shard(tmp_path / "in/a.h5", numbered(3))
    return tmp_path / "in"


@pytest.mark.parametrize("target", ["../secret.h5", "{}/secret.h5", "sub/up", "../in-private/linked.h5"])
def test_link_out_of_a_listed_directory_is_refused(folder, target):
    secret = folder.parent / "secret.h5"
    (folder / "sub/up").symlink_to("../../secret.h5")
    (folder.parent / "in-private").mkdir()
    os.link(secret, folder.parent / "in-private/linked.h5")
    (folder / "c.nc").symlink_to("../secret.h5")  # without a usual ending, the link is left out
    with hostile.opens(secret) as counts:
        assert found(folder) == ["a.h5"]
        (folder / "b.h5").symlink_to(target.format(folder.parent))
        (folder / "other").symlink_to("..")
        for pattern in ("", "*.h5", "*", "*/*.h5"):
            with case(pattern), refused(77, f"file={folder}/", "--input"):
                open_shards([str(folder / pattern)])
    assert counts == [0]


def test_links_inside_a_directory_and_named_links_are_followed(folder):
    write_shard(folder / "sub/c.h5", numbered(1))
    (folder / "b.h5").symlink_to("sub/c.h5")
    (folder.parent / "named.h5").symlink_to(folder / "a.h5")
    (folder.parent / "dir").symlink_to(folder)
    assert [shard.n_rows for shard in open_shards([str(folder)])] == [3, 1]
    assert open_shards([str(folder.parent / "named.h5")])[0].n_rows == 3
    assert found(folder.parent / "dir") == found(folder.parent / "dir/*.h5") == ["a.h5", "b.h5"]


# -- output directories -----------------------------------------------------------------------------------------------


@pytest.fixture
def output(tmp_path):
    """Return the directory of a finished run with parts of 3, 2 and 4 rows, and a part that it does not name."""
    directory = finished(tmp_path / "out", 3, 2, 4)
    write_shard(directory / "parts/unfinished.h5", numbered(7), "features")
    return directory


def edit_parts(directory, change, name="parts"):
    forge(directory / "index.h5", lambda run: edit_json(run, name, change), "shardpress/run")


def test_output_directory_is_read_by_its_index(output):
    def reverse(parts):
        parts.reverse()
        for i, part in enumerate(parts):
            part["ranges"][0]["shard"] = i

    edit_parts(output, reverse)  # the order of the index counts, and not that of the names
    edit_parts(output, lambda shards: shards.reverse(), "shards")
    for pattern in (output, output / "index.h5", f"{output}/"):
        shards = open_shards([str(pattern)])
        assert [shard.n_rows for shard in shards] == [4, 2, 3]
        np.testing.assert_array_equal(whole(shards[0]), feature_rows(4, 5))
    assert len(open_shards([str(output / "parts")], dataset="features")) == 4, "the files of the folder"


def link_to_moved(path):
    path.rename(path.parent / "moved")
    path.symlink_to("moved")


def forged(change):
    """Return a function that changes the part with number 1 in the index."""
    return lambda output: edit_parts(output, lambda parts: change(parts[1]))


@pytest.mark.parametrize(
    ("change", "exit_code"),
    [
        (lambda output: part_paths(output)[1].unlink(), 66),
        (lambda output: (output / "index.h5").unlink(), 66),
        (lambda output: link_to_moved(part_paths(output)[1]), 77),
        (lambda output: link_to_moved(output / "parts"), 77),
        (forged(lambda part: part.update(n_rows=5)), 65),
        (forged(lambda part: part["entry"].update(file="parts/../../secret.h5")), 65),
    ],
)
def test_unfinished_or_changed_output_directory_is_refused(output, change, exit_code):
    secret = output.parent / "secret.h5"
    write_shard(secret, numbered(3))
    change(output)
    with hostile.opens(secret) as counts, refused(exit_code, str(output)):
        open_shards([str(output)])
    assert counts == [0]
