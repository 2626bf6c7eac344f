"""What is looked at before a run begins: what cannot work is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.run import context
from pipeline.run.context import RunState
from pipeline.run.prepare import prepare
from pipeline.settings.config import Config
from tests.support.helpers import refused, write_shard


def config(folder: Path, n_rows: int = 100, n_inputs: int = 10) -> Config:
    rows = np.arange(n_rows * n_inputs, dtype=np.float32).reshape(n_rows, n_inputs)
    shard = write_shard(folder / "x.h5", rows)
    return Config.of(input=(shard,), output=str(folder / "out"), threads=1)


def test_settings_fit_the_rows_and_columns_or_all_that_do_not_are_told(tmp_path: Path) -> None:
    given = config(tmp_path)
    for n_features, batch_size in ((1, 1), (9, 100)):
        prepare(given.changed(n_features=n_features, batch_size=batch_size))
    few = "n_features: 10, expected 1 to 9 for these rows; batch_size: 101, expected 1 to 100 for these rows"
    with refused(78, few):
        prepare(given.changed(n_features=10, batch_size=101))


def test_settings_that_cannot_work_are_told_before_the_inputs_are_looked_at(tmp_path: Path) -> None:
    with refused(78, "epochs: 0, expected 1 or more"):
        prepare(Config.of(input=(str(tmp_path / "nowhere"),), epochs=0))


def test_every_setting_that_was_left_open_has_a_value_and_nothing_is_written(tmp_path: Path) -> None:
    prepared = prepare(config(tmp_path))
    assert (prepared.n_rows, prepared.given, prepared.bad_shards) == (100, None, [])
    settings = prepared.config
    assert settings.network.n_features == 5
    assert (settings.training.batch_size, settings.training.learning_rate) == (16, 0.001)
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_an_input_is_refused(tmp_path: Path) -> None:
    given = config(tmp_path)
    with refused(78, "holds the input file=", "expected another --output"):
        prepare(given.changed(output=str(tmp_path)))
    with refused(78, "n_features: 10, expected 1 to 9 for these rows; output=", "holds the input file="):
        prepare(given.changed(n_features=10, output=str(tmp_path)))


def test_a_single_column_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with refused(65, "has a single column, expected two or more", "--dataset"):
        prepare(config(tmp_path, n_inputs=1))


def test_bad_data_passes_by_leave_alone_and_shards_that_are_left_out_count(tmp_path: Path) -> None:
    given = config(tmp_path).changed(max_bad_rows="7%", max_bad_shards="50%")
    prepared = prepare(given)
    assert (prepared.max_bad_rows, prepared.max_bad_shards) == (0, 0)
    (tmp_path / "y.h5").write_bytes(b"no HDF5")
    prepared = prepare(given.changed(input=(*given.inputs.input, str(tmp_path / "y.h5")), on_bad_data="skip"))
    assert (len(prepared.shards), len(prepared.bad_shards)) == (1, 1)
    assert (prepared.max_bad_rows, prepared.max_bad_shards) == (7, 1)


def test_the_compilers_time_is_that_of_no_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three stages of 10 s, the compiler busy before the first one and within the second."""
    now, compiled = [100.0], [7.0]
    monkeypatch.setattr(context.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(context, "seconds_compiling", lambda: compiled[0])
    state = RunState()
    for stage, seconds in (("scan", 0), ("training", 4), ("encoding", 0)):
        now[0] += 10 + seconds
        compiled[0] += seconds
        state.end_stage(stage)
    assert state.seconds == dict.fromkeys(("scan", "training", "encoding"), 10.0)
    assert (state.seconds_compiling, state.total_seconds) == (4.0, 34.0)
