"""Tests of scripts/make_data.py: shards are reproducible and complete, and never replace foreign files."""

import h5py
import numpy as np
import pytest

from scripts import make_data


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def make(out, *arguments):
    """Run the script, and check that it succeeds."""
    assert make_data.main([*map(str, arguments), "--output", str(out)]) == 0


def contents(folder):
    """Return the content of every file in a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def load(folder, key="X"):
    """Return one dataset over all shards of a folder, in the order of their names."""
    arrays = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path, "r") as file:
            arrays.append(file[key][:])
    return np.concatenate(arrays)


def synthetic(out, *arguments, rows=1000, columns=60):
    make(out, "synthetic", "--rows", rows, "--columns", columns, *arguments)
    return load(out)


def test_rows_depend_on_the_seed_but_not_on_the_layout(tmp_path, monkeypatch):
    expected = synthetic(tmp_path / "plain", "--shards", 7)
    assert load(tmp_path / "plain", "row_id").tolist() == list(range(1000))
    monkeypatch.setattr(make_data, "BLOCK_BYTES", 173 * 60 * 4)
    for layout in make_data.LAYOUTS:
        np.testing.assert_array_equal(synthetic(tmp_path / layout, "--layout", layout), expected, err_msg=layout)
    np.testing.assert_array_equal(synthetic(tmp_path / "few", "--shards", 1, rows=100), expected[:100])
    for name in ("donuts", "synthetic"):
        for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
            make(tmp_path / folder / name, name, "--seed", seed, *(["--rows", 9] if name == "synthetic" else []))
        assert (load(tmp_path / "a" / name) != load(tmp_path / "c" / name)).any(), name
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_missing_files_are_written_and_changed_parameters_replace_all(out):
    make(out, "digits")
    whole = contents(out)
    (out / "digits-train-1.h5").unlink()
    make(out, "digits")
    assert contents(out) == whole
    for n_shards in (5, 2):
        make(out / "s", "synthetic", "--rows", 30, "--shards", n_shards)
    assert sorted(contents(out / "s")) == ["synthetic-0.h5", "synthetic-1.h5"]


def test_foreign_files_are_not_changed(out, capsys):
    out.mkdir()
    with h5py.File(out / "mine.h5", "w") as file:
        file["X"] = np.arange(6).reshape(2, 3)
    (out / "not-hdf5.h5").write_bytes(b"something else")
    before = contents(out)
    make(out, "digits")
    make(out, "donuts", "--force")
    assert before.items() <= contents(out).items()
    assert not list(out.glob("digits-train-*"))  # our files were removed
    (out / "donuts-0.h5").write_bytes(b"a stranger's")
    before = contents(out)
    for force in ([], ["--force"]):
        assert make_data.main(["donuts", "--output", str(out), *force]) == make_data.CANNOT_CREATE
        assert "donuts-0.h5" in capsys.readouterr().err
        assert contents(out) == before
