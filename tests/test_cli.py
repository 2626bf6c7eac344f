"""Tests of mistakes on the command line: a message with advice, the right exit code, and no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.extract import main
from tests.support.helpers import numbered, write_shard
from tests.support.logged import mentions


def test_all_settings_that_do_not_fit_the_shards_are_listed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_shard(tmp_path / "x.h5", numbered(10, 4))
    flags = ["--input", str(tmp_path / "x.h5"), "--output", str(tmp_path / "out")]
    assert main([*flags, "--n-features", "4", "--batch-size", "11"]) == 78
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert mentions(message, "--n-features: 4", "1 to 3")
    assert mentions(message, "--batch-size: 11", "1 to 10")
    assert "Traceback" not in caplog.text
    assert not (tmp_path / "out").exists(), "a refused run writes no files"


def test_an_unexpected_error_requests_a_report(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("impossible")

    monkeypatch.setattr("shardpress.run.engine.run", broken)
    assert main([]) == 70
    assert mentions(caplog.text, "CRITICAL", "report")
    assert "impossible" in caplog.text
