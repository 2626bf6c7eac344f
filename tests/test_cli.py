"""Tests of mistakes on the command line: a message with advice, the right exit code, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.extract import main
from tests.support import standin
from tests.support.helpers import numbered, write_shard
from tests.support.logged import STARTED_NOTHING, mentions


def outcome(caplog: pytest.LogCaptureFixture, *flags: str) -> tuple[int, str]:
    code = main(list(flags))
    message, *last = [record.getMessage() for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
    assert len(last) == (code not in (64, 78)), last
    assert all(line.startswith(STARTED_NOTHING) for line in last)
    assert "Traceback" not in caplog.text
    return code, message


def test_all_settings_that_do_not_fit_the_shards_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shard(tmp_path / "x.h5", numbered(10, 4))
    flags = ["--input", str(tmp_path / "x.h5"), "--output", str(tmp_path / "out")]
    code, message = outcome(caplog, *flags, "--n-features", "4", "--batch-size", "11")
    assert code == 78
    assert mentions(message, "n_features: 4", "1 to 3")
    assert mentions(message, "batch_size: 11", "1 to 10")
    assert not (tmp_path / "out").exists(), "a refused run writes no files"


@pytest.mark.process
def test_a_model_for_other_shards_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    standin.install(monkeypatch)
    narrow = write_shard(tmp_path / "narrow.h5", numbered(40, 4))
    wide = write_shard(tmp_path / "wide.h5", numbered(40, 6))
    assert main(["--input", narrow, "--output", str(tmp_path / "a"), "--epochs", "1"]) == 0
    caplog.clear()
    flags = ["--input", wide, "--output", str(tmp_path / "b"), "--model", str(tmp_path / "a"), "--n-features", "3"]
    flags += ["--hidden", "5,4"]
    code, message = outcome(caplog, *flags)
    assert code == 78
    assert mentions(message, "4 columns", 6)
    assert mentions(message, 2, "n_features 3")
    assert mentions(message, "hidden none", "hidden 5 4")


def test_an_unexpected_error_requests_a_report(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("impossible")

    monkeypatch.setattr("shardpress.run.engine.run", broken)
    assert main([]) == 70
    assert mentions(caplog.text, "CRITICAL", "report")
    assert "impossible" in caplog.text
