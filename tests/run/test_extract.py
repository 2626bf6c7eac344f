"""Tests of the whole program on the CPU: the same rows give the same features in every way.

Sample: each dtype with one of two networks, and two of three signals; with TEST_CASES=all every combination.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.extract import main
from shardpress.cli import main as run_cli
from shardpress.features import open_features
from shardpress.output.disk import Disk
from shardpress.result import Result, load_model
from shardpress.run import encoding_stage
from tests.support.cases import cross, sample
from tests.support.fields import run_with_sizes, set_fields
from tests.support.helpers import write_shard
from tests.support.logged import COMPLETE, mentions
from tests.support.tolerances import TOLERANCES

pytestmark = pytest.mark.compiler

QUICK = ["--epochs", "3", "--n-features", "5"]


def rows(n_rows: int, n_inputs: int = 12, dtype: Any = np.float32, seed: int = 1) -> np.ndarray:
    """Return rows with structure to learn: three directions and a little noise."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(n_rows, 3)) @ rng.normal(size=(3, n_inputs)) + 0.1 * rng.normal(size=(n_rows, n_inputs))
    return (20 * found + 100).clip(0, 255).astype(dtype)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two shards, longer than a tile of the encoder, with labels."""
    folder = tmp_path_factory.mktemp("shards")
    x = rows(3500)
    for i, part in enumerate((x[:2100], x[2100:])):
        write_shard(folder / f"{i}.h5", part, extras={"y": np.arange(len(part)) % 3})
    return folder


def features(folder: Path, output: Path, *flags: str) -> np.ndarray:
    assert run_with_sizes(["--input", str(folder), "--output", str(output), *QUICK, *flags]) == 0
    return features_in(output)


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of a finished run over the shards, which tests only read."""
    output = tmp_path_factory.mktemp("finished") / "out"
    features(shards, output)
    return output


def features_in(output: Path) -> np.ndarray:
    return np.asarray(open_features(output).features.compute())


# -- the same features -------------------------------------------------------------------------------------------


@pytest.mark.process
def test_equal_seeds_give_equal_bits(shards: Path, finished: Path, tmp_path: Path) -> None:
    first = features_in(finished)
    second = features(shards, tmp_path / "b")
    assert first.tobytes() == second.tobytes()
    assert not np.array_equal(first, features(shards, tmp_path / "c", "--seed", "1"))


@pytest.mark.parametrize(
    "flags", [["block_rows=1"], ["block_rows=1500"], ["--threads", "1"], ["--threads", "5"]], ids=" ".join
)
def test_block_size_and_threads_do_not_change_a_bit(
    shards: Path, finished: Path, tmp_path: Path, flags: list[str]
) -> None:
    assert features_in(finished).tobytes() == features(shards, tmp_path / "b", *flags).tobytes()


def test_streamed_and_resident_rows_give_equal_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    set_fields(monkeypatch, start="random")
    x = rows(6000, 500)  # 12 MB, more than half of the smaller budget
    folder = tmp_path / "shards"
    folder.mkdir()
    for i in range(3):
        write_shard(folder / f"{i}.h5", x[2000 * i : 2000 * (i + 1)])
    window = [f"shuffle_window={2**20}", "--hidden", "64"]  # sizes that fit into both budgets
    resident = features(folder, tmp_path / "a", *window)
    assert "rows in memory" in caplog.text
    streamed = features(folder, tmp_path / "b", *window, "--memory-budget", "20MiB")
    assert "rows streamed" in caplog.text
    assert resident.tobytes() == streamed.tobytes()


@pytest.mark.parametrize(
    "options", [{"chunks": (100, 5), "compression": "gzip"}, {"compression": "lzf", "shuffle": True}]
)
def test_the_storage_of_rows_does_not_change_a_bit(shards: Path, finished: Path, tmp_path: Path, options: dict) -> None:
    stored = tmp_path / "stored"
    stored.mkdir()
    for path in shards.iterdir():
        with h5py.File(path) as file:
            write_shard(stored / path.name, file["X"][:], extras={"y": file["y"][:]}, **options)
    assert features_in(finished).tobytes() == features(stored, tmp_path / "b").tobytes()


def test_a_given_model_gives_the_same_features_without_training(shards: Path, finished: Path, tmp_path: Path) -> None:
    copy = shutil.copy(finished / "index.h5", tmp_path / "copy.h5")
    for i, model in enumerate((finished, finished / "index.h5", copy)):
        encoded = features(shards, tmp_path / str(i), "--model", str(model))
        assert features_in(finished).tobytes() == encoded.tobytes()
        assert "training" not in Result.open(tmp_path / str(i)).report()


def test_an_output_directory_or_its_parts_can_be_the_input_of_a_run(finished: Path, tmp_path: Path) -> None:
    again = features(finished / "parts", tmp_path / "b", "--n-features", "2")
    assert again.shape == (3500, 2)
    assert features(finished, tmp_path / "c", "--n-features", "2").tobytes() == again.tobytes()


# -- correct features --------------------------------------------------------------------------------------------


DEEP = ["--hidden", "12,11", "--activation", "leaky-relu", "--code-activation", "sigmoid", "--corruption", "0.2"]


@pytest.mark.parametrize(("dtype", "flags"), cross(["uint8", "float32", "float64", "int64"], [[], DEEP]))
def test_features_equal_the_numpy_encoder(tmp_path: Path, dtype: str, flags: list[str]) -> None:
    x = rows(1500, dtype=dtype)
    write_shard(tmp_path / "x.h5", x)
    found = features(tmp_path / "x.h5", tmp_path / "out", *flags)
    model = load_model(tmp_path / "out")
    assert model.network.n_layers == (3 if flags else 2)
    assert np.allclose(found, model.encode(x), rtol=0, atol=TOLERANCES["cpu", "float32", "features"])


def test_the_default_settings_learn(tmp_path: Path) -> None:
    x = rows(3000)
    write_shard(tmp_path / "x.h5", x)
    assert main(["--input", str(tmp_path / "x.h5"), "--output", str(tmp_path / "out")]) == 0
    model = load_model(tmp_path / "out")
    scaled = model.scaler.transform(x)
    y = model.decode(model.encode(x))
    assert np.mean((y - scaled) ** 2) < 0.2 * scaled.var(axis=0).mean()


def test_labels_and_features_have_the_same_order_in_the_index(finished: Path) -> None:
    with h5py.File(finished / "index.h5") as index:
        assert np.array_equal(index["features"][:], features_in(finished))
        assert np.array_equal(index["y"][:], np.concatenate([np.arange(2100) % 3, np.arange(1400) % 3]))
        assert index["valid"][:].all()


# -- bad rows ----------------------------------------------------------------------------------------------------


def test_bad_rows_stop_a_run_with_a_given_model(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    x = rows(1500)
    x[1100, 3] = -np.inf
    write_shard(tmp_path / "x.h5", x)
    flags = ["--input", str(tmp_path / "x.h5"), "--output", str(tmp_path / "b"), "--model", str(finished)]
    assert main(flags) == 65
    assert mentions(caplog.text, f"file={tmp_path / 'x.h5'}", "-inf", 1100, 3)


def test_divergence_keeps_the_last_good_weights(shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    rate = ["--optimizer", "momentum", "--learning-rate", "1e6"]
    assert main(["--input", str(shards), "--output", str(out), *QUICK, *rate]) == 65
    assert mentions(caplog.text, "TrainingDiverged", "epoch 0")
    last_good = load_model(out / "work/model-last-good.h5").parameters
    assert all(np.isfinite(array).all() for array in last_good.values())
    assert not (out / "index.h5").exists()


# -- the output directory ----------------------------------------------------------------------------------------


def test_repeating_a_finished_run_changes_nothing(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first = features(shards, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name not in ("lock", "run.log")}
    capsys.readouterr()
    assert np.array_equal(features(shards, out), first)
    assert mentions(capsys.readouterr().out, COMPLETE, 3500)
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name not in ("lock", "run.log")}
    assert after == before


class Interrupted(Disk):
    """Disk that is interrupted by the user while the second part is synced."""

    n_parts = 0

    def create(self, path: Path) -> int:
        self.n_parts += path.parent.name == "parts"
        return super().create(path)

    def sync(self, descriptor: int) -> None:
        if self.n_parts == 2:
            raise KeyboardInterrupt
        super().sync(descriptor)


def test_an_interrupt_exits_with_130_and_leaves_no_partial_file(
    shards: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding_stage, "_LEAST_FILES", 1)  # so that there are two parts
    out = tmp_path / "out"
    flags = ["--input", str(shards), "--output", str(out), "--threads", "1", *QUICK]
    assert run_cli("", flags, Interrupted()) == 130
    assert len(list((out / "parts").iterdir())) == 1
    assert not (out / "index.h5").exists()
    assert features(shards, out, "--threads", "1").tobytes() == features_in(finished).tobytes()


@pytest.mark.process
@pytest.mark.parametrize(
    "number", sample([signal.SIGINT, signal.SIGTERM, signal.SIGHUP], 2), ids=lambda each: each.name
)
def test_a_signal_ends_a_process_cleanly(shards: Path, tmp_path: Path, number: int) -> None:
    """The shell or scheduler that waits for the process sees which signal ended it."""
    command = [sys.executable, "scripts/extract.py", "--input", str(shards), "--output", str(tmp_path / "out")]
    process = subprocess.Popen([*command, "--epochs", "1000000"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "rows in memory" in line:
            process.send_signal(number)
            break
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -number, errors
    assert mentions(errors, signal.Signals(number).name)
    assert "Traceback" not in errors
    assert not [path for path in (tmp_path / "out").rglob("*") if "writing" in path.name]
    features(shards, tmp_path / "out")


def test_quiet_prints_only_the_summary(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    features(
        shards, tmp_path / "out", "--quiet", "--validation-fraction", "0"
    )  # otherwise the baseline can cause a warning
    assert mentions(capsys.readouterr().out, 3500, 12, 5)
    assert not caplog.records
