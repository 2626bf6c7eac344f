"""Tests of scripts/make_data.py: shards are reproducible and complete, and never replace foreign files."""

import errno
import gzip
import struct

import h5py
import numpy as np
import pytest

from scripts import make_data

FASHION = ["fashion-mnist-test/test-0.h5", *(f"fashion-mnist-train-{i}.h5" for i in range(6))]
DIGITS = ["digits-test/test-0.h5", *(f"digits-train-{i}.h5" for i in range(3))]


def write_idx(path, values):
    """Write an idx file of uint8."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


@pytest.fixture
def fashion(monkeypatch, tmp_path):
    """Write tiny files in the format of Fashion-MNIST: 20 + 3 images, each filled with its own number."""
    folder = tmp_path / "source"
    folder.mkdir()
    for part, count in (("train", 20), ("t10k", 3)):
        images = np.arange(count, dtype=np.uint8)[:, None, None] + np.zeros((1, 28, 28), np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    monkeypatch.setattr(make_data, "FASHION_FOLDER", folder)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def make(out, *arguments):
    """Run the script, and check that it succeeds."""
    assert make_data.main([*map(str, arguments), "--output", str(out)]) == 0


def contents(folder):
    """Return the content of every file in a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(contents(folder))


def stamps(folder):
    """Return the inode and modification time of every file; they change if the file is written again."""
    return {name: ((folder / name).stat().st_ino, (folder / name).stat().st_mtime_ns) for name in names(folder)}


def load(folder, key="X"):
    """Return one dataset over all shards of a folder, in the order of their names."""
    arrays = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path, "r") as file:
            arrays.append(file[key][:])
    return np.concatenate(arrays)


def test_fashion_mnist_is_complete_and_has_a_separate_test_set(fashion, out):
    make(out)
    assert names(out) == FASHION
    assert load(out).shape == (20, 784)
    assert (load(out) == np.arange(20)[:, None]).all()  # no row is lost, duplicated or moved
    assert load(out, "y").tolist() == [*range(10), *range(10)]
    assert load(out, "row_id").tolist() == list(range(20))
    assert load(out / "fashion-mnist-test").shape == (3, 784)
    before = contents(out)
    labels = fashion / "train-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    for damaged in (whole[:-4], b"plain text", gzip.compress(b"\0\0\x08\1\0"), gzip.compress(b"\0\0\x0d\1")):
        labels.write_bytes(damaged)
        assert make_data.main(["--force", "--output", str(out)]) == make_data.BAD_DATA
        assert contents(out) == before


@pytest.mark.process
def test_digits_are_complete_and_in_order(out):
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    make(out, "digits")
    assert names(out) == DIGITS
    both = out, out / "digits-test"
    np.testing.assert_array_equal(np.concatenate([load(folder) for folder in both]), X)
    np.testing.assert_array_equal(np.concatenate([load(folder, "y") for folder in both]), y)


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


# ---- files are written once, and are always the same


def test_only_missing_files_are_written_unless_forced(out):
    make(out, "digits")
    before = stamps(out)
    whole = contents(out)
    (out / "digits-train-1.h5").unlink()
    make(out, "digits")
    after = stamps(out)
    assert [name for name in after if after[name] != before[name]] == ["digits-train-1.h5"]
    make(out, "digits", "--force")
    assert not set(stamps(out).values()) & set(after.values())
    assert contents(out) == whole
    for n_shards in (5, 2):
        make(out / "s", "synthetic", "--rows", 30, "--shards", n_shards)
    assert names(out / "s") == ["synthetic-0.h5", "synthetic-1.h5"], "changed parameters replace the whole set"


def test_interrupted_run_leaves_whole_shards_and_is_resumed(out, monkeypatch):
    whole = make_data.fill

    def interrupt_the_third(file, piece, table, first, end):
        whole(file, piece, table, first, end)
        if first == 500:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(make_data, "fill", interrupt_the_third)
        assert make_data.main(["synthetic", "--rows", "1000", "--output", str(out)]) == make_data.INTERRUPTED
    assert names(out) == ["synthetic-0.h5", "synthetic-1.h5"]
    before = stamps(out)
    make(out, "synthetic", "--rows", 1000)
    assert len(names(out)) == 4
    assert before.items() <= stamps(out).items()


def test_digits_and_fashion_mnist_replace_each_other_as_a_whole(fashion, out, monkeypatch):
    for installed in (False, True):
        with monkeypatch.context() as patch:
            if not installed:
                patch.setattr(make_data, "FASHION_FOLDER", out / "not-installed")
            make(out)
        assert names(out) == (FASHION if installed else DIGITS)
    before = stamps(out)
    monkeypatch.setattr(make_data, "FASHION_FOLDER", out / "not-installed")
    make(out)
    assert stamps(out) == before, "the set is complete"
    (out / "fashion-mnist-train-2.h5").unlink()
    make(out)
    assert names(out) == DIGITS


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


def test_wrong_usage_and_failed_writes_are_errors(out, tmp_path, monkeypatch, capsys):
    for line, phrase in [
        ("mnist", "'mnist'"),
        ("donuts --seed -1", "--seed"),
        ("donuts --rows 10", "--rows"),
        ("synthetic --rows 3 --shards 4", "--shards is 4"),
    ]:
        assert make_data.main(line.split()) == make_data.USAGE, line
        assert phrase in capsys.readouterr().err, line
    monkeypatch.setattr(make_data, "FASHION_FOLDER", tmp_path / "not-installed")
    assert make_data.main(["fashion-mnist", "--output", str(out)]) == make_data.NO_INPUT
    assert "dataset-fashion-mnist" in capsys.readouterr().err
    (tmp_path / "file").write_text("in the way")
    assert make_data.main(["donuts", "--output", str(tmp_path / "file")]) == make_data.CANNOT_CREATE

    def fail(*arguments):
        raise OSError(errno.EIO, "as HDF5 words it")

    monkeypatch.setattr(make_data, "fill", fail)
    assert make_data.main(["donuts", "--output", str(out)]) == make_data.CANNOT_CREATE
    assert "donuts-0.h5: " in capsys.readouterr().err
    assert names(out) == []
