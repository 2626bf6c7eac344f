"""Tests of scripts/make_data.py: shards are reproducible and complete, and never replace foreign files."""

import errno
import gzip
import os
import signal
import struct
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from scripts import make_data


def write_idx(path, values, magic=None, shape=None):
    """Write an idx file of uint8, optionally with another magic number or shape in the header."""
    shape = values.shape if shape is None else shape
    magic = struct.pack(">BBBB", 0, 0, 8, len(shape)) if magic is None else magic
    path.write_bytes(gzip.compress(magic + struct.pack(f">{len(shape)}I", *shape) + values.tobytes()))


@pytest.fixture
def no_fashion(monkeypatch, tmp_path):
    """Simulate a machine without the Fashion-MNIST files."""
    monkeypatch.setattr(make_data, "FASHION_FOLDER", tmp_path / "not-installed")


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


def names(folder):
    """Return every file in a folder, as paths relative to it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder):
    """Return the content of every file in a folder."""
    return {name: (folder / name).read_bytes() for name in names(folder)}


def stamps(folder):
    """Return the inode and modification time of every file; they change if the file is written again."""
    return {n: ((folder / n).stat().st_ino, (folder / n).stat().st_mtime_ns) for n in names(folder)}


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
    assert names(out) == ["fashion-mnist-test/test-0.h5", *(f"fashion-mnist-train-{i}.h5" for i in range(6))]
    with h5py.File(out / "fashion-mnist-train-5.h5") as file:
        assert file["X"].chunks is None
        assert [file[key].dtype for key in ("X", "y", "row_id")] == [np.uint8, np.uint8, np.int64]
        assert file["row_id"][:].tolist() == [16, 17, 18, 19]
    assert load(out).shape == (20, 784)
    assert (load(out) == np.arange(20)[:, None]).all()  # no row is lost, duplicated or moved
    assert load(out, "y").tolist() == [*range(10), *range(10)]
    assert load(out, "row_id").tolist() == list(range(20))
    assert load(out / "fashion-mnist-test").shape == (3, 784)


def test_parts_of_fashion_mnist_are_separate_sets(fashion, out):
    for name, rows in (("fashion-mnist", 20), ("fashion-mnist-test", 3)):
        make(out / name, name)
        assert load(out / name).shape == (rows, 784), name


@pytest.mark.process
def test_digits_are_complete_and_in_order(out):
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    make(out, "digits")
    assert names(out) == ["digits-test/test-0.h5", *(f"digits-train-{i}.h5" for i in range(3))]
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
    rest = X[:, 2:] - (X[:, :2] - X[:, 1::-1] / 2)
    np.testing.assert_allclose(rest.std(axis=0), 0.04, rtol=0.1)  # correlated, but not copies
    assert abs(np.diff(y.astype(int))).mean() > 0.4  # shuffled


def test_cost_of_the_reference_network_falls_as_published(out):
    """Run the reference experiment in plain NumPy up to epoch 1000; the whole experiment would take too long."""
    make(out, "donuts")
    X = load(out)
    costs = reference_costs((X - X.min(axis=0)) / np.ptp(X, axis=0), epochs=1001)
    assert 0.1 < costs[0] < 1
    assert 1e-4 < costs[500] < 2e-3
    assert 1e-4 < costs[1000] < costs[500]


def reference_costs(X, epochs):
    """Return the cost of each epoch: tied weights, sigmoid features, linear output, full batch, momentum."""
    random = np.random.default_rng(0)
    W = (random.standard_normal((4, 2)) / np.sqrt(6)).astype(np.float32)
    parameters = [W, np.zeros(2, np.float32), np.zeros(4, np.float32)]
    velocities = [np.zeros_like(p) for p in parameters]
    costs = []
    for _ in range(epochs):
        W, b_hidden, b_output = parameters
        h = 1 / (1 + np.exp(-(X @ W + b_hidden)))
        error = h @ W.T + b_output - X
        costs.append(np.mean(error**2))
        output = 2 * error / error.size
        hidden = (output @ W) * h * (1 - h)
        gradients = X.T @ hidden + output.T @ h, hidden.sum(axis=0), output.sum(axis=0)
        velocities = [0.9 * v - 0.1 * g for v, g in zip(velocities, gradients, strict=True)]
        parameters = [p + v for p, v in zip(parameters, velocities, strict=True)]
    return costs


# ---- synthetic rows


def synthetic(out, *arguments, rows=1000, columns=60):
    make(out, "synthetic", "--rows", rows, "--columns", columns, *arguments)
    return load(out)


@pytest.mark.slow
def test_synthetic_rows_do_not_depend_on_the_block_size(tmp_path, monkeypatch):
    expected = synthetic(tmp_path / "expected", "--shards", 3, rows=520)
    for layout in ("contiguous", "columns"):
        for block_rows in (1, 173, 255, 256, 257):
            case = f"{layout}-{block_rows}"
            monkeypatch.setattr(make_data, "BLOCK_BYTES", block_rows * 60 * 4)
            found = synthetic(tmp_path / case, "--shards", 3, "--layout", layout, rows=520)
            np.testing.assert_array_equal(found, expected, err_msg=case)


def test_at_most_one_block_of_rows_is_in_memory(tmp_path, monkeypatch):
    sizes_read = []
    load_synthetic = make_data.load_synthetic

    def spy(*arguments):
        table = load_synthetic(*arguments)
        read = lambda start, stop: sizes_read.append(stop - start) or table.read(start, stop)  # noqa: E731
        return make_data.Table(table.n_rows, table.n_inputs, table.dtype, read)

    monkeypatch.setattr(make_data, "load_synthetic", spy)
    monkeypatch.setattr(make_data, "BLOCK_BYTES", 100 * 60 * 4)
    for layout in make_data.LAYOUTS:
        synthetic(tmp_path / layout, "--shards", 2, "--layout", layout)
    assert max(sizes_read) == 100


def test_layouts_are_stored_as_named_and_hold_the_same_rows(tmp_path):
    expected = synthetic(tmp_path / "plain")
    found = {}
    for layout in make_data.LAYOUTS:
        rows = synthetic(tmp_path / layout, "--layout", layout)
        np.testing.assert_array_equal(rows, expected, err_msg=layout)
        with h5py.File(tmp_path / layout / "synthetic-0.h5") as file:
            found[layout] = file["X"].chunks, file["X"].compression
    assert found == {
        "contiguous": (None, None),
        "chunked": ((250, 60), None),
        "gzip": ((250, 60), "gzip"),
        "lzf": ((250, 60), "lzf"),
        "columns": ((250, 25), "gzip"),
    }


def test_synthetic_rows_use_the_range_of_every_dtype(out):
    for dtype in make_data.DTYPES:
        X = synthetic(out / dtype, "--dtype", dtype)
        assert X.dtype == dtype
        top = min(65535, np.iinfo(dtype).max) if X.dtype.kind in "iu" else 1
        assert X.min() < 0.1 * top, dtype
        assert 0.9 * top < X.max() <= top, dtype
        assert 0.4 * top < X.mean(dtype=np.float64) < 0.6 * top, dtype


def test_synthetic_rows_do_not_depend_on_counts_and_shards(tmp_path):
    few = synthetic(tmp_path / "few", "--shards", 1, rows=100)
    many = synthetic(tmp_path / "many", "--shards", 7, rows=900)
    np.testing.assert_array_equal(many[:100], few)
    assert load(tmp_path / "many", "row_id").tolist() == list(range(900))
    np.testing.assert_array_equal(load(tmp_path / "many", "y")[:100], load(tmp_path / "few", "y"))


def test_synthetic_rows_have_few_principal_components(out):
    X = synthetic(out, rows=2000)
    variances = np.linalg.eigvalsh(np.cov(X.T))[::-1]
    assert variances[:16].sum() > 0.9 * variances.sum()
    assert variances[16:].min() > 0  # the noise remains


# ---- files are written once, and are always the same


@pytest.mark.slow
def test_same_command_gives_the_same_bytes(tmp_path):
    for name in ("digits", "donuts", "synthetic"):
        for folder in ("a", "b"):
            make(tmp_path / folder / name, name, "--seed", 3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.slow
def test_different_seed_gives_different_rows(tmp_path):
    for name in ("donuts", "synthetic"):
        for seed in (0, 1):
            make(tmp_path / name / str(seed), name, "--seed", seed)
        assert (load(tmp_path / name / "0") != load(tmp_path / name / "1")).any(), name


def test_existing_files_are_rewritten_only_with_force(out, capsys):
    make(out, "digits")
    before = stamps(out)
    content_before = contents(out)
    capsys.readouterr()
    make(out, "digits")
    assert stamps(out) == before
    assert capsys.readouterr().out
    make(out, "digits", "--force")
    assert not set(stamps(out).values()) & set(before.values())
    assert contents(out) == content_before


def test_only_the_missing_shard_is_written(out):
    make(out, "digits")
    before = stamps(out)
    (out / "digits-train-1.h5").unlink()
    make(out, "digits")
    after = stamps(out)
    assert [name for name in after if after[name] != before[name]] == ["digits-train-1.h5"]


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
    assert "interrupted" in capsys.readouterr().err
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


def test_digits_replace_missing_fashion_mnist(no_fashion, out, capsys):
    make(out)
    assert names(out) == ["digits-test/test-0.h5", *(f"digits-train-{i}.h5" for i in range(3))]
    assert "dataset-fashion-mnist" in capsys.readouterr().out.splitlines()[0]


def test_fashion_mnist_replaces_digits_once_installed(fashion, out, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(make_data, "FASHION_FOLDER", out / "not-installed")
        make(out)
    make(out)
    assert names(out) == ["fashion-mnist-test/test-0.h5", *(f"fashion-mnist-train-{i}.h5" for i in range(6))]
    assert not (out / "digits-test").exists()


def test_complete_fashion_mnist_is_kept_without_its_source(fashion, out, monkeypatch):
    make(out)
    before = stamps(out)
    monkeypatch.setattr(make_data, "FASHION_FOLDER", out / "not-installed")
    make(out)
    assert stamps(out) == before
    (out / "fashion-mnist-train-2.h5").unlink()
    make(out)
    assert names(out) == ["digits-test/test-0.h5", *(f"digits-train-{i}.h5" for i in range(3))]


def test_other_sets_have_their_own_directories(fashion, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in (["synthetic", "--rows", "10"], ["donuts"], ["digits"], ["fashion-mnist"], []):
        assert make_data.main(arguments) == 0
    data = tmp_path / "data"
    assert sorted(path.name for path in data.glob("*.h5")) == [f"fashion-mnist-train-{i}.h5" for i in range(6)]
    folders = {path.name for path in data.iterdir() if path.is_dir()}
    assert folders == {"digits", "donuts", "fashion-mnist", "fashion-mnist-test", "synthetic"}


# ---- foreign files are kept, and errors are clear


def test_foreign_files_are_not_changed(no_fashion, out, capsys):
    out.mkdir()
    with h5py.File(out / "mine.h5", "w") as file:
        file["X"] = np.arange(6).reshape(2, 3)
    (out / "not-hdf5.h5").write_bytes(b"something else")
    before = contents(out)
    make(out)
    make(out, "donuts", "--force")
    assert before.items() <= contents(out).items()
    assert not list(out.glob("digits-train-*"))  # our files were removed
    assert "mine.h5" in capsys.readouterr().out


def test_foreign_file_with_the_name_of_a_shard_stops_the_run(out, capsys):
    out.mkdir()
    (out / "donuts-0.h5").write_bytes(b"a stranger's")
    for force in ([], ["--force"]):
        assert make_data.main(["donuts", "--output", str(out), *force]) == make_data.CANNOT_CREATE
        assert "donuts-0.h5" in capsys.readouterr().err, force
        assert contents(out) == {"donuts-0.h5": b"a stranger's"}, force


IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"
LABELS_OF_20 = np.zeros(20, np.uint8)


@pytest.mark.parametrize(
    ("name", "damage", "phrase"),
    [
        (LABELS, lambda p: write_idx(p, LABELS_OF_20, magic=b"\0\0\x0d\1"), "00000d01"),
        (LABELS, lambda p: write_idx(p, LABELS_OF_20, shape=(4, 5)), "00000802"),
        (LABELS, lambda p: write_idx(p, LABELS_OF_20, shape=(21,)), "20 values, expected 21"),
        (LABELS, lambda p: write_idx(p, LABELS_OF_20, shape=(19,)), "20 values, expected 19"),
        (LABELS, lambda p: write_idx(p, LABELS_OF_20[:18]), "18 labels, expected 20"),
        (LABELS, lambda p: p.write_bytes(gzip.compress(b"\0\0\x08\1\0")), "idx header"),
        (LABELS, lambda p: p.write_bytes(gzip.compress(b"")), "idx header"),
        (IMAGES, lambda p: p.write_bytes(b"plain text"), "gzip"),
        (IMAGES, lambda p: p.write_bytes(b""), "idx header"),
        (IMAGES, lambda p: p.write_bytes(p.read_bytes()[:-20]), "gzip"),
    ],
)
def test_bad_source_file_is_named_and_changes_nothing(fashion, out, capsys, name, damage, phrase):
    make(out, "digits")
    before = stamps(out)
    damage(fashion / name)
    assert make_data.main(["--output", str(out)]) == make_data.BAD_DATA
    error = capsys.readouterr().err
    assert name in error
    assert phrase in error
    assert stamps(out) == before


def test_fewer_images_than_shards_is_an_error(fashion, out, capsys):
    write_idx(fashion / IMAGES, np.zeros((5, 28, 28), np.uint8))
    write_idx(fashion / LABELS, np.zeros(5, np.uint8))
    assert make_data.main(["--output", str(out)]) == make_data.BAD_DATA
    assert "5 rows, expected 6" in capsys.readouterr().err


def test_missing_fashion_mnist_is_reported_with_its_package(no_fashion, out, capsys):
    assert make_data.main(["fashion-mnist", "--output", str(out)]) == make_data.NO_INPUT
    assert "dataset-fashion-mnist" in capsys.readouterr().err


def test_directory_that_cannot_be_created_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        assert make_data.main(["donuts", "--output", str(output)]) == make_data.CANNOT_CREATE
        assert str(tmp_path / "file") in capsys.readouterr().err


def test_lack_of_disk_space_is_found_before_writing(out, monkeypatch, capsys):
    monkeypatch.setattr(make_data.shutil, "disk_usage", lambda path: SimpleNamespace(free=999_999))
    for layout in make_data.LAYOUTS:
        arguments = ["synthetic", "--rows", "1000", "--columns", "250", "--shards", "1", "--layout", layout]
        assert make_data.main([*arguments, "--output", str(out)]) == make_data.CANNOT_CREATE
        assert capsys.readouterr().err.count("1.0 MB") == 2, layout  # required and free
        assert names(out) == [], layout


def test_failed_write_is_an_error_and_leaves_nothing(out, monkeypatch, capsys):
    def fail(*arguments):
        raise OSError(errno.EIO, "as HDF5 words it")

    monkeypatch.setattr(make_data, "fill", fail)
    assert make_data.main(["donuts", "--output", str(out)]) == make_data.CANNOT_CREATE
    error = capsys.readouterr().err
    assert "donuts-0.h5: " in error
    assert os.strerror(errno.EIO) in error
    assert names(out) == []


def test_invalid_usage_names_the_argument(capsys):
    for line, phrase in [
        ("mnist", "invalid choice: 'mnist'"),
        ("donuts --sed 1", "unrecognized arguments: --sed"),
        ("donuts --seed -1", "--seed"),
        ("donuts --rows 10", "--rows"),
        ("synthetic --rows 0 --columns -3", "--rows is 0"),
        ("synthetic --rows 0 --columns -3", "--columns is -3"),
        ("synthetic --rows 3 --shards 4", "--shards is 4"),
        ("synthetic --layout compact", "invalid choice: 'compact'"),
    ]:
        assert make_data.main(line.split()) == make_data.USAGE, line
        assert phrase in capsys.readouterr().err, line


def test_help_shows_the_commands(capsys):
    assert make_data.main(["--help"]) == 0
    assert "python scripts/make_data.py donuts" in capsys.readouterr().out
