"""Tests of the checks before a run: impossible requests are refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from shardpress.run.context import RunState
from shardpress.run.prepare import prepare
from shardpress.settings.config import Config
from tests.support.helpers import refused, write_shard


def config(folder: Path, n_rows: int = 100, n_inputs: int = 10) -> Config:
    rows = np.arange(n_rows * n_inputs, dtype=np.float32).reshape(n_rows, n_inputs)
    shard = write_shard(folder / "x.h5", rows)
    return Config.of(input=(shard,), output=str(folder / "out"), threads=1)


def test_every_setting_that_does_not_fit_the_rows_is_listed(tmp_path: Path) -> None:
    valid = config(tmp_path)
    for n_features, batch_size in ((1, 1), (9, 100)):
        prepare(valid.changed(n_features=n_features, batch_size=batch_size))
    with refused(78, "n_features: 10", "1 to 9", "batch_size: 101", "1 to 100"):
        prepare(valid.changed(n_features=10, batch_size=101))


def test_contradictions_are_refused_before_inputs_are_opened(tmp_path: Path) -> None:
    with refused(78, "quiet and verbose"):
        prepare(Config.of(input=(str(tmp_path / "nowhere"),), quiet=True, verbose=True))


def test_preparing_resolves_defaults_and_writes_nothing(tmp_path: Path) -> None:
    prepared = prepare(config(tmp_path))
    assert (prepared.n_rows, prepared.given_model, prepared.bad_shards) == (100, None, [])
    settings = prepared.config
    assert settings.network.n_features == 5
    assert (settings.training.batch_size, settings.training.learning_rate) == (16, 0.001)
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_an_input_is_refused(tmp_path: Path) -> None:
    valid = config(tmp_path)
    with refused(78, f"output={tmp_path}", f"file={tmp_path / 'x.h5'}"):
        prepare(valid.changed(output=str(tmp_path)))
    with refused(78, "n_features: 10", f"output={tmp_path}", f"file={tmp_path / 'x.h5'}"):
        prepare(valid.changed(n_features=10, output=str(tmp_path)))


def test_a_single_column_is_refused(tmp_path: Path) -> None:
    with refused(65, f"file={tmp_path / 'x.h5'} dataset=X", "--dataset"):
        prepare(config(tmp_path, n_inputs=1))


def test_limits_of_bad_data_require_on_bad_data(tmp_path: Path) -> None:
    valid = config(tmp_path).changed(max_bad="50%")
    prepared = prepare(valid)
    assert (prepared.max_bad_rows, prepared.max_bad_shards) == (0, 0)
    (tmp_path / "y.h5").write_bytes(b"no HDF5")
    prepared = prepare(valid.changed(input=(*valid.inputs.input, str(tmp_path / "y.h5")), on_bad_data="skip"))
    assert (len(prepared.shards), len(prepared.bad_shards)) == (1, 1)
    assert (prepared.max_bad_rows, prepared.max_bad_shards) == (50, 1)


def test_compilation_time_is_not_part_of_any_stage() -> None:
    """Three stages take 10 s each; the compiler runs before the first one and during the second."""
    now = [100.0]
    compiled = [7.0]
    state = RunState(clock=lambda: now[0], compiler_clock=lambda: compiled[0])
    for stage, seconds in (("scan", 0), ("training", 4), ("encoding", 0)):
        now[0] += 10 + seconds
        compiled[0] += seconds
        state.end_stage(stage)
    assert state.seconds == dict.fromkeys(("scan", "training", "encoding"), 10.0)
    assert (state.seconds_compiling, state.total_seconds) == (4.0, 34.0)
