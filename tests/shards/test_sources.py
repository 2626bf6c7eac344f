"""Tests of input paths: patterns, directories and indexes name the files, and links are not followed."""

import errno
import os

import h5py
import numpy as np
import pytest

from shardpress.errors import DataError
from shardpress.hdf5.files import FILES
from shardpress.shards.open import open_shards
from shardpress.shards.sources import find
from shardpress_kernels.network import Network
from tests.support import hostile
from tests.support.cases import case, each
from tests.support.helpers import numbered, refused, whole, without_privileges, write_shard
from tests.support.hostilemodels import edit_json, forge, model_of
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


@pytest.mark.parametrize(
    ("pattern", "phrase"),
    [
        ("nothing-*.h5", "--input"),
        ("x" * 300, "--input"),
        ("nul\0", "--input"),
        ("cancr", "no such file"),
        ("empty", "empty directory"),
        ("cancer", "1.txt, 2.txt, 9/ and 1 more"),
    ],
)
def test_pattern_without_matches_is_refused(tmp_path, pattern, phrase):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.hidden").touch()
    (tmp_path / "cancer/9").mkdir(parents=True)
    for name in ("10.txt", "2.txt", "1.txt"):
        (tmp_path / "cancer" / name).touch()
    with refused(66, f"input={tmp_path}/{pattern[:3]}", phrase):
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


def test_unreadable_file_in_a_directory_is_left_out(open_path, caplog):
    def check():
        assert found(open_path) == ["a.nc"]
        assert f"file={open_path}/b.nc: " in caplog.text

    for name in ("a.nc", "b.nc"):
        write_shard(open_path / name, numbered(3))
    (open_path / "b.nc").chmod(0)
    assert without_privileges(check) == (0, "")


@pytest.mark.parametrize("name", ["", "/a.h5", "/*.h5"])
def test_path_in_a_locked_directory_is_not_reported_as_missing(open_path, name):
    (open_path / "locked/in").mkdir(parents=True)
    write_shard(open_path / "locked/in/a.h5", numbered(3))
    (open_path / "locked").chmod(0)
    pattern = f"{open_path}/locked/in{name}"
    exit_code, sentence = without_privileges(lambda: find([pattern]))
    assert exit_code == 77
    assert sentence.startswith(f"input={pattern}: Permission denied")


@pytest.mark.parametrize(("number", "exit_code"), [(errno.EIO, 74), (errno.EMFILE, 71)])
@pytest.mark.parametrize("name", ["open", "preadv", "scandir"])
def test_failing_storage_while_looking_is_a_storage_error(tmp_path, monkeypatch, name, number, exit_code):
    write_shard(tmp_path / "a.nc", numbered(3))

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if name == "scandir" else FILES, name, fail)
    with refused(exit_code, f"{tmp_path}", os.strerror(number)):
        find([str(tmp_path)])


# -- links ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Return a directory of shards next to a file that must not be read."""
    write_shard(tmp_path / "secret.h5", numbered(3))
    (tmp_path / "in/sub").mkdir(parents=True)
    write_shard(tmp_path / "in/a.h5", numbered(3))
    return tmp_path / "in"


@pytest.mark.parametrize("pattern", ["", "*.h5", "*"])
@pytest.mark.parametrize("target", ["../secret.h5", "{}/secret.h5", "sub/up"])
def test_link_out_of_a_listed_directory_is_refused(folder, target, pattern):
    (folder / "sub/up").symlink_to("../../secret.h5")
    (folder / "b.h5").symlink_to(target.format(folder.parent))
    phrases = (f"file={folder}/b.h5", "secret.h5", "--input")
    with hostile.opens(folder.parent / "secret.h5") as counts, refused(77, *phrases):
        open_shards([str(folder / pattern)])
    assert counts == [0]


def test_link_without_a_usual_ending_is_left_out(folder, caplog):
    (folder / "b.nc").symlink_to("../secret.h5")
    with hostile.opens(folder.parent / "secret.h5") as counts:
        assert found(folder) == ["a.h5"]
    assert counts == [0]
    assert f"file={folder}/b.nc: " in caplog.text


def test_linked_directory_that_leads_outside_is_refused(folder):
    (folder / "other").symlink_to("..")
    with refused(77, f"file={folder}/other/secret.h5"):
        found(folder / "*/*.h5")


def test_link_to_a_directory_of_a_similar_name_is_refused(folder):
    private = folder.with_name(f"{folder.name}-private")
    private.mkdir()
    write_shard(private / "secret.h5", numbered(3))
    (folder / "b.h5").symlink_to(private / "secret.h5")
    with refused(77, f"file={folder}/b.h5", "secret.h5"):
        found(folder)


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


def test_missing_part_is_no_input(output):
    path = part_paths(output)[1]
    path.unlink()
    with refused(66, f"file={path}", "No such file"):
        open_shards([str(output)])


@each("change", [lambda parts: parts[1].update(n_rows=5), lambda parts: parts[1]["entry"].update(n_bytes=5)])
def test_part_with_a_size_different_from_the_index_is_refused(tmp_path, change):
    output = finished(tmp_path / "out", 3, 2, 4)
    edit_parts(output, change)
    with refused(65, f"file={part_paths(output)[1]}", "expected 5"):
        open_shards([str(output)])


@pytest.mark.parametrize("name", ["../secret.h5", "parts/../../secret.h5", "{}/secret.h5"])
def test_index_that_names_outside_files_is_refused(output, tmp_path, name):
    write_shard(tmp_path / "secret.h5", numbered(3))
    edit_parts(output, lambda parts: parts[0]["entry"].update(file=name.format(tmp_path)))
    with hostile.opens(tmp_path / "secret.h5") as counts, refused(65, str(output)):
        open_shards([str(output)])
    assert counts == [0]


@pytest.mark.parametrize("linked", ["part", "folder"])
def test_part_that_is_a_link_is_refused(output, tmp_path, linked):
    path = part_paths(output)[1] if linked == "part" else output / "parts"
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with refused(77, str(output)):
        open_shards([str(output)])


def test_unfinished_output_directory_is_no_input(output):
    (output / "index.h5").unlink()
    for pattern in (output, output / "index.h5"):
        with refused(66, str(output)):
            found(pattern)


def test_model_and_index_without_parts_are_no_rows(output, tmp_path):
    """Their only matrices that are stored in the file are the weights."""
    (tmp_path / "model.h5").write_bytes(model_of(Network((4, 2))).to_hdf5())
    (tmp_path / "copy.h5").write_bytes((output / "index.h5").read_bytes())
    for name in ("model.h5", "copy.h5"):
        with case(name), pytest.raises(DataError) as caught:
            open_shards([str(tmp_path / name)])
        assert "shardpress/model/W" not in str(caught.value)
