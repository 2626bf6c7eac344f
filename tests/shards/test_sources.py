"""Tests of input paths: patterns, directories and indexes name the files, and links are followed."""

import errno
import os
from functools import partial
from pathlib import Path

import h5py
import pytest

from shardpress.hdf5.files import FILES
from shardpress.shards.open import open_shards
from shardpress.shards.sources import find
from tests.support.cases import case
from tests.support.helpers import numbered, refused, without_privileges, write_shard
from tests.support.hostilemodels import edit_json, forge
from tests.support.parts import finished, part_paths

pytestmark = pytest.mark.process


def found(*patterns):
    return [Path(source.path).name for source in find([str(pattern) for pattern in patterns])]


# -- patterns and directories -----------------------------------------------------------------------------------------


def test_files_are_in_the_order_of_patterns_and_numbers(tmp_path):
    for name in ("part-10.h5", "part-9.h5", "part-9b.h5", "part-010.h5", "b.hdf5", "notes.txt", "more/z.h5", "a[1].h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = ["a[1].h5", "b.hdf5", "part-9.h5", "part-9b.h5", "part-010.h5", "part-10.h5"]
    assert found(tmp_path / "notes.txt", tmp_path) == ["notes.txt", *names[:2], "z.h5", *names[2:]]
    assert found(tmp_path / "part-*.h5") == names[2:]
    (tmp_path / "a1.h5").touch()
    assert found(tmp_path / "a[1].h5") == ["a[1].h5"]


def test_file_found_twice_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    path.touch()
    os.symlink(path, tmp_path / "soft.h5")
    os.link(path, tmp_path / "hard.h5")
    for other in ("soft.h5", "hard.h5", "a*.h5"):
        with case(other), refused(65, "twice", "a.h5"):
            found(path, tmp_path / other)


def test_directory_gives_files_that_begin_like_hdf5(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "shardpress")
    for name in ("a.nc", "b.h5ad", "c", ".hidden", "._a.h5", ".sub/e.nc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_shard(tmp_path / name, numbered(3))
    with h5py.File(tmp_path / "f.mat", "w", userblock_size=512) as file:
        file["X"] = numbered(3)
    (tmp_path / "notes.txt").write_text("x" * 600)
    (tmp_path / "link").symlink_to(".sub/e.nc")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "named.h5").touch()  # files with this suffix are not opened
    opened = []
    real_open = FILES.open
    monkeypatch.setattr(FILES, "open", lambda path: opened.append(os.path.basename(path)) or real_open(path))
    assert found(tmp_path) == ["a.nc", "b.h5ad", "c", "f.mat", "link", "named.h5"]
    assert sorted(opened) == ["a.nc", "c", "f.mat", "link", "notes.txt"]
    assert "broken, circle, fifo and 1 more" in caplog.text


def test_input_without_files_is_refused(tmp_path):
    (tmp_path / "texts/x.h5").mkdir(parents=True)
    (tmp_path / "texts/1.txt").touch()
    (tmp_path / "circle.h5").symlink_to("circle.h5")
    (tmp_path / "absent.h5").symlink_to("annex/objects/1")
    for pattern in ("nothing-*.h5", "nul\0", "texts", "circle.h5", "absent.h5"):
        with case(pattern), refused(66, f"{tmp_path}/{pattern[:2]}"):
            open_shards([f"{tmp_path}/{pattern}"])


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


def test_links_are_followed_wherever_they_lead(tmp_path):
    folder = tmp_path / "in"
    for name in ("in/a.h5", "elsewhere/c.h5", "elsewhere/d.h5", "elsewhere/sub/e"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_shard(tmp_path / name, numbered(1))
    for name, target in (
        ("b.h5", "../elsewhere/c.h5"),
        ("d.h5", tmp_path / "elsewhere/d.h5"),
        ("s", "../elsewhere/sub"),
    ):
        (folder / name).symlink_to(target)
    (tmp_path / "link").symlink_to(folder)
    assert found(tmp_path / "link") == found(tmp_path / "link/*") == ["a.h5", "b.h5", "d.h5", "e"]
    paths = [source.path for source in find([str(tmp_path / "link")])]
    assert paths[-1] == str(tmp_path / "link/s/e")
    assert sum(shard.n_rows for shard in open_shards([str(folder)])) == 4


def test_nested_folders_are_searched_in_natural_order(tmp_path):
    names = ["1.h5", "2/10/a.h5", "2/b.h5", "2-b/a.h5", "10/2.h5", "10/10.h5"]
    for name in [*names, ".git/x.h5", "2/.cache/x.h5", "zarr/c/x.h5", "lost+found/x.h5", "2/out/parts/x.h5"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "zarr/zarr.json").write_text('{"node_type": "array"}')
    (tmp_path / "2/out/.shardpress").touch()
    (tmp_path / "10/up").symlink_to("..")
    expected = [str(tmp_path / name) for name in names]
    assert [source.path for source in find([str(tmp_path)])] == expected
    assert [source.path for source in find([f"{tmp_path}/**/[0-9ab]*.h5"])] == expected


# -- output directories -----------------------------------------------------------------------------------------------


def claim_more_rows(output):
    change = partial(edit_json, name="parts", change=lambda parts: parts[1].update(n_rows=5))
    forge(output / "index.h5", change, "shardpress/run")


@pytest.mark.parametrize(
    ("change", "exit_code"),
    [
        (lambda output: part_paths(output)[1].unlink(), 66),
        (lambda output: (output / "index.h5").unlink(), 66),
        (claim_more_rows, 65),
    ],
)
def test_unfinished_or_changed_output_directory_is_refused(tmp_path, change, exit_code):
    output = finished(tmp_path / "out", 3, 2, 4)
    change(output)
    with refused(exit_code, str(output)):
        open_shards([str(output)])
