"""Tests of the benchmarks: they run on small inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.benchmarks import compare, harness, run
from scripts.benchmarks.othertree import Tree

pytestmark = [pytest.mark.process, pytest.mark.slow]


def test_comparison_with_a_commit_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compare, "SHAPES", compare.SHAPES[:1])
    monkeypatch.setattr(compare, "other_tree", lambda commit: Tree(harness.ROOT, "0123abcd"))
    flags = ["--rounds", "1", "--output", str(tmp_path)]
    assert run.main(["compare", "step", "--against", "HEAD", *flags]) == 0
    (result,) = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert set(result["seconds"]) == {"ours", "before"}
    assert run.main(["compare", "device", "--device", "cuda7", "--without-peers", *flags]) == 0
    assert "cuda7" in capsys.readouterr().out, "a missing card is named"
