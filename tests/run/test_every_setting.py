"""A setting that changes after a run, or after a part of it, gives the result of a fresh run, or is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.result.finished import INDEX
from shardpress.settings.config import SETTINGS
from shardpress.shards.vet import Selection
from tests.support.cases import cross, each
from tests.support.helpers import write_shard
from tests.support.interruptions import FullAfter
from tests.support.standin import Workspace, install

N = 24  # rows and columns of the square shards
KINDS = ("scan", "model", "part")
"""Results after which a run is interrupted."""

# Each setting with flags that give it another value. `OTHER` is replaced by the folder of another model.
CHANGES: dict[str, tuple[str, ...]] = {
    "dataset": ("--dataset", "Z"),
    "orientation": ("--orientation", "columns"),
    "match_columns": ("--match-columns", "name"),
    "columns": ("--columns", "c1*", "!c12"),
    "include": ("--include", "b/label"),
    "labels": ("--labels", "y"),
    "missing_label": ("--target", "split", "--missing-label", "5"),
    "fit_on": ("--fit-on", "split==1"),
    "model": ("--model", "OTHER"),
    "scale": ("--scale", "std"),
    "row_scale": ("--row-scale", "norm"),
    "transform": ("--transform", "log1p"),
    "n_features": ("--n-features", "3"),
    "preset": ("--preset", "reference", "--learning-rate", "0.01"),
    "epochs": ("--epochs", "3"),
    "batch_size": ("--batch-size", "10"),
    "optimizer": ("--optimizer", "momentum"),
    "learning_rate": ("--learning-rate", "0.01"),
    "corruption": ("--corruption", "0.5"),
    "target": ("--target", "split"),
    "target_weight": ("--target", "split", "--target-weight", "3"),
    "replicas": ("--replicas", "2"),
    "seed": ("--seed", "1"),
    "validation_fraction": ("--validation-fraction", "0.3"),
    "patience": ("--patience", "1"),
    "threads": ("--threads", "2"),
    "memory_budget": ("--memory-budget", "64MiB"),
    "device_memory_budget": ("--device-memory-budget", "1MiB"),
    "require_device": ("--require-device",),
    "on_bad_data": ("--on-bad-data", "raise"),
    "max_bad": ("--max-bad", "0"),
    "missing_value": ("--missing-value", "0"),
    "impute": ("--impute", "mean"),
    "missing_indicator": ("--impute", "mean", "--missing-indicator", "yes"),
    "clip_quantile": ("--clip-quantile", "0.1"),
    "on_drift": ("--on-drift", "clip"),
    "storage_dtype": ("--storage-dtype", "float16"),
    "compression": ("--compression", "gzip"),
    "row_error": ("--row-error",),
    "finish_by": ("--finish-by", "+8h"),
    "verify": ("--verify", "sizes"),
    "restart": ("--restart",),
    "overwrite": ("--overwrite",),
    "retrain": ("--retrain",),
    "quiet": ("--quiet",),
    "verbose": ("--verbose",),
}

# Settings that this test does not change, and where they are tested.
ELSEWHERE = {
    **dict.fromkeys(("hidden", "output_layer", "activation", "code_activation", "nested"), "test_request: networks"),
    **dict.fromkeys(("append", "drop_missing", "on_append_drift"), "test_append"),
    **dict.fromkeys(("workers", "devices", "scheduler", "insecure_cluster", "mixed_processors"), "test_workers"),
    "keep_generations": "test_generations",
    "input": "test_difference: files",
    "output": "each test",
}

BASE = ("--on-bad-data", "skip", "--max-bad", "50%", "--include", "a/label", "--match-columns", "ignore")
REPLACING = {"overwrite", "restart", "retrain"}


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return a data set in which each place, axis and order of columns has other values."""
    install(monkeypatch)
    workspace = Workspace(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(2):
        names = [f"c{j}" for j in range(N)]
        rows = rng.normal(size=(N, N)).astype(np.float32)
        rows[3, 2] = np.nan
        extras = {"y": np.arange(N) % 3, "split": np.arange(N) % 2, "Z": rng.normal(size=(N, N)).astype(np.float32)}
        path = write_shard(workspace.shards / f"{i}.h5", rows, extras=extras)
        with h5py.File(path, "r+") as file:
            file["X"].attrs["columns"] = names if i == 0 else names[::-1]
            file["a/label"] = np.arange(N)
            file["b/label"] = np.arange(N) + 1000
    return workspace


def content(output: Path) -> dict[str, bytes]:
    """Return the bytes of all datasets of a result that have a value for each row."""
    with h5py.File(output / INDEX) as index:
        return {name: item[()].tobytes() for name, item in index.items() if isinstance(item, h5py.Dataset)}


def flags_of(name: str, other: Path) -> list[str]:
    flags = [str(other) if flag == "OTHER" else flag for flag in CHANGES[name]]
    return flags if name in REPLACING else [*flags, "--overwrite"]


def check(squares: Workspace, output: Path, flags: Sequence[str], fresh: Path, fresh_code: int) -> None:
    """Check that a run in a used folder ends as a fresh one, or is refused and changes nothing."""
    before = content(output) if (output / INDEX).exists() else None
    code = squares.run(output, *BASE, *flags)
    if code == 0:
        assert fresh_code == 0
        assert content(output) == content(fresh)
        return
    assert code in (fresh_code, 78)
    assert (content(output) if (output / INDEX).exists() else None) == before


def test_each_setting_is_changed_here_or_elsewhere() -> None:
    names = {name for name, setting in SETTINGS.items() if setting.has_flag}
    assert names == CHANGES.keys() | ELSEWHERE.keys()
    assert {field.name for field in fields(Selection)} <= CHANGES.keys()


def fresh_result(squares: Workspace, name: str, folder: Path) -> tuple[list[str], Path, int]:
    """Return the flags that change a setting, and the folder and exit code of a fresh run with them."""
    other = folder / "other"
    if "OTHER" in CHANGES[name]:
        assert squares.run(other, *BASE, "--seed", "5") == 0
    flags = flags_of(name, other)
    fresh = folder / f"fresh-{name}"
    return flags, fresh, squares.run(fresh, *BASE, *flags)


@pytest.mark.slow
@each("name", CHANGES)
def test_a_finished_result_becomes_that_of_a_fresh_run(squares: Workspace, name: str, tmp_path: Path) -> None:
    flags, fresh, code = fresh_result(squares, name, tmp_path)
    finished = tmp_path / f"finished-{name}"
    assert squares.run(finished, *BASE) == 0
    check(squares, finished, flags, fresh, code)


@pytest.mark.slow
@each("name, kind", cross(list(CHANGES), KINDS))
def test_an_unfinished_run_becomes_a_fresh_one(squares: Workspace, name: str, kind: str, tmp_path: Path) -> None:
    folder = tmp_path / kind
    folder.mkdir(exist_ok=True)
    flags, fresh, code = fresh_result(squares, name, folder)
    unfinished = folder / f"unfinished-{name}"
    assert squares.run(unfinished, *BASE, disk=FullAfter(kind, 1)) != 0
    check(squares, unfinished, flags, fresh, code)
