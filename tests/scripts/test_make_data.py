"""Tests of scripts/make_data.py: shards are reproducible and complete, and never replace foreign files."""

import errno
import gzip
import signal
import struct
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from scripts import make_data
from tests.support.cases import case

FASHION = ["fashion-mnist-test/test-0.h5", *(f"fashion-mnist-train-{i}.h5" for i in range(6))]
DIGITS = ["digits-test/test-0.h5", *(f"digits-train-{i}.h5" for i in range(3))]


def write_idx(path, values, magic=None, shape=None):
    """Write an idx file of uint8, optionally with another magic number or shape in the header."""
    shape = values.shape if shape is None else shape
    magic = struct.pack(">BBBB", 0, 0, 8, len(shape)) if magic is None else magic
    path.write_bytes(gzip.compress(magic + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()))


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


# ---- content of each set


def test_default_is_fashion_mnist_with_a_separate_test_set(fashion, out):
    make(out)
    assert names(out) == FASHION
    with h5py.File(out / "fashion-mnist-train-5.h5") as file:
        assert file["X"].chunks is None
        assert [file[key].dtype for key in ("X", "y", "row_id")] == [np.uint8, np.uint8, np.int64]
        assert file["row_id"][:].tolist() == [16, 17, 18, 19]
    assert load(out).shape == (20, 784)
    assert (load(out) == np.arange(20)[:, None]).all()  # no row is lost, duplicated or moved
    assert load(out, "y").tolist() == [*range(10), *range(10)]
    assert load(out, "row_id").tolist() == list(range(20))
    assert load(out / "fashion-mnist-test").shape == (3, 784)


@pytest.mark.process
def test_digits_are_complete_and_in_order(out):
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    make(out, "digits")
    assert names(out) == DIGITS
    both = out, out / "digits-test"
    assert load(out).dtype == np.uint8
    assert load(out).shape == (1500, 64)
    np.testing.assert_array_equal(np.concatenate([load(folder) for folder in both]), X)
    np.testing.assert_array_equal(np.concatenate([load(folder, "y") for folder in both]), y)


def test_donuts_are_two_noisy_rings_with_correlated_columns(out):
    make(out, "donuts")
    X = load(out)
    y = load(out, "y")
    assert (X.shape, X.dtype) == ((2000, 4), np.float32)
    radius = np.hypot(X[:, 0], X[:, 1])
    for label, expected in ((0, 1.0), (1, 2.5)):
        ring = radius[y == label]
        assert len(ring) == 1000
        assert abs(ring.mean() - expected) < 0.05
        assert 0.25 < ring.std() < 0.35  # a visible width
        quadrants = (X[y == label, :2] > 0) @ [1, 2]
        assert np.bincount(quadrants).min() > 200  # in all directions
    correlation = np.corrcoef(X.T)
    assert abs(correlation[0, 1]) < 0.1
    assert min(correlation[0, 2], correlation[1, 3]) > 0.8
    assert abs(np.diff(y.astype(int))).mean() > 0.4  # shuffled


def synthetic(out, *arguments, rows=1000, columns=60):
    make(out, "synthetic", "--rows", rows, "--columns", columns, *arguments)
    return load(out)


def test_layouts_are_stored_as_named_and_hold_the_same_rows(tmp_path, monkeypatch):
    """The rows depend neither on the layout, nor on blocks, nor on the numbers of rows and of shards."""
    expected = synthetic(tmp_path / "plain", "--shards", 7)
    assert load(tmp_path / "plain", "row_id").tolist() == list(range(1000))
    found = {}
    for layout in make_data.LAYOUTS:
        for block_rows in (173, 257, 1000):
            with case(layout, block_rows):
                folder = tmp_path / layout / str(block_rows)
                monkeypatch.setattr(make_data, "BLOCK_BYTES", block_rows * 60 * 4)
                rows = synthetic(folder, "--layout", layout)
                np.testing.assert_array_equal(rows, expected)
        with h5py.File(folder / "synthetic-0.h5") as file:
            found[layout] = file["X"].chunks, file["X"].compression
    assert found == {
        "contiguous": (None, None),
        "chunked": ((250, 60), None),
        "gzip": ((250, 60), "gzip"),
        "lzf": ((250, 60), "lzf"),
        "columns": ((250, 25), "gzip"),
    }
    np.testing.assert_array_equal(synthetic(tmp_path / "few", "--shards", 1, rows=100), expected[:100])


def test_synthetic_rows_use_the_range_of_every_dtype(out):
    for dtype in make_data.DTYPES:
        X = synthetic(out / dtype, "--dtype", dtype)
        assert X.dtype == dtype
        top = min(65535, np.iinfo(dtype).max) if X.dtype.kind in "iu" else 1
        assert X.min() < 0.1 * top, dtype
        assert 0.9 * top < X.max() <= top, dtype
        assert 0.4 * top < X.mean(dtype=np.float64) < 0.6 * top, dtype


# ---- files are written once, and are always the same


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_not(tmp_path):
    for name in ("donuts", "synthetic"):
        for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
            make(tmp_path / folder / name, name, "--seed", seed)
        assert (load(tmp_path / "a" / name) != load(tmp_path / "c" / name)).any(), name
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_only_missing_files_are_written_unless_forced(out):
    make(out, "digits")
    before = stamps(out)
    whole = contents(out)
    make(out, "digits")
    assert stamps(out) == before
    (out / "digits-train-1.h5").unlink()
    make(out, "digits")
    after = stamps(out)
    assert [name for name in after if after[name] != before[name]] == ["digits-train-1.h5"]
    make(out, "digits", "--force")
    assert not set(stamps(out).values()) & set(after.values())
    assert contents(out) == whole


def test_changed_parameters_replace_the_whole_set(out):
    synthetic(out, "--shards", 5)
    assert synthetic(out, "--shards", 2, rows=30).shape == (30, 60)
    assert names(out) == ["synthetic-0.h5", "synthetic-1.h5"]


def test_interrupted_run_leaves_whole_shards_and_is_resumed(out, monkeypatch, capsys):
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


def test_interrupt_during_a_write_is_deferred():
    reached = []

    def write():
        with make_data.delay_interrupt():
            signal.raise_signal(signal.SIGINT)
            reached.append("the end")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


# ---- the default set is consistent


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


def test_other_sets_have_their_own_directories(fashion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["synthetic", "--rows", "10"], ["donuts"], ["digits"], ["fashion-mnist"], []):
        assert make_data.main(arguments) == 0
    data = tmp_path / "data"
    assert sorted(path.name for path in data.glob("*.h5")) == FASHION[1:]
    folders = {path.name for path in data.iterdir() if path.is_dir()}
    assert folders == {"digits", "donuts", "fashion-mnist", "fashion-mnist-test", "synthetic"}


# ---- foreign files are kept, and errors are clear


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


IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"
LABELS_OF_20 = np.zeros(20, np.uint8)


@pytest.mark.parametrize(
    ("name", "damage", "phrase"),
    [
        (LABELS, lambda p: write_idx(p, LABELS_OF_20, magic=b"\0\0\x0d\1"), "00000d01"),
        (LABELS, lambda p: write_idx(p, LABELS_OF_20, shape=(21,)), "20 values, expected 21"),
        (LABELS, lambda p: write_idx(p, LABELS_OF_20[:18]), "18 labels, expected 20"),
        (LABELS, lambda p: p.write_bytes(gzip.compress(b"\0\0\x08\1\0")), "idx header"),
        (IMAGES, lambda p: p.write_bytes(b"plain text"), "gzip"),
        (IMAGES, lambda p: p.write_bytes(p.read_bytes()[:-20]), "gzip"),
        (IMAGES, lambda p: write_idx(p, np.zeros((5, 28, 28), np.uint8)), "20 labels, expected 5"),
    ],
)
def test_bad_source_file_is_named_and_changes_nothing(fashion, out, capsys, name, damage, phrase):
    make(out, "digits")
    before = stamps(out)
    damage(fashion / name)
    assert make_data.main(["--output", str(out)]) == make_data.BAD_DATA
    error = capsys.readouterr().err
    assert phrase in error
    assert stamps(out) == before


def test_missing_fashion_mnist_is_reported_with_its_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_data, "FASHION_FOLDER", tmp_path / "not-installed")
    assert make_data.main(["fashion-mnist", "--output", str(tmp_path / "out")]) == make_data.NO_INPUT
    assert "dataset-fashion-mnist" in capsys.readouterr().err


def test_files_that_cannot_be_written_are_an_error(out, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert make_data.main(["donuts", "--output", str(output)]) == make_data.CANNOT_CREATE
        assert str(tmp_path / "file") in capsys.readouterr().err

    def fail(*arguments):
        raise OSError(errno.EIO, "as HDF5 words it")

    with monkeypatch.context() as patch:
        patch.setattr(make_data, "fill", fail)
        assert make_data.main(["donuts", "--output", str(out)]) == make_data.CANNOT_CREATE
    assert "donuts-0.h5: " in capsys.readouterr().err
    monkeypatch.setattr(make_data.shutil, "disk_usage", lambda path: SimpleNamespace(free=999_999))
    arguments = ["synthetic", "--rows", "1000", "--columns", "250", "--shards", "1"]
    assert make_data.main([*arguments, "--output", str(out)]) == make_data.CANNOT_CREATE
    assert capsys.readouterr().err.count("1.0 MB") == 2  # required and free
    assert names(out) == []


def test_invalid_usage_names_the_argument(capsys):
    for line, phrase in [
        ("mnist", "'mnist'"),
        ("donuts --sed 1", "--sed"),
        ("donuts --seed -1", "--seed"),
        ("donuts --rows 10", "--rows"),
        ("synthetic --rows 0 --columns -3", "--columns is -3"),
        ("synthetic --rows 3 --shards 4", "--shards is 4"),
    ]:
        assert make_data.main(line.split()) == make_data.USAGE, line
        assert phrase in capsys.readouterr().err, line
