"""Tests of the reference run of the model on two donuts: its costs as numbers and as a plot.

Sample: 21 epochs on OpenCL; with TEST_CASES=all 501 epochs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from scripts import make_data, reference
from shardpress.features import open_features
from tests.support.cases import ALL_CASES
from tests.support.interpreters import REPOSITORY

pytestmark = pytest.mark.process

COSTS = list(reference.PUBLISHED.values())
EPOCHS = 501 if ALL_CASES else 21


def costs_of(table: str) -> dict[int, float]:
    lines = [line.split() for line in table.splitlines() if line.strip()[:1].isdigit()]
    return {int(epoch): float(ours) for epoch, _, ours in lines}


@pytest.mark.compiler
def test_costs_fall_like_the_published_ones_and_end_lower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(tmp_path / "donuts")
    output = tmp_path / "reference"
    assert make_data.main(["donuts", "--output", data]) == 0
    capsys.readouterr()
    assert reference.main(["--data", str(tmp_path / "none")]) == 66
    assert "make_data.py" in capsys.readouterr().err
    assert reference.main(["--data", data, "--output", str(output)]) == 0
    found = costs_of(capsys.readouterr().out)
    assert list(found) == list(reference.PUBLISHED)
    costs = list(found.values())
    assert 0.1 <= costs[0] < 1, "the magnitude of the published start"
    assert all(later < earlier for earlier, later in pairwise(costs))
    assert costs[-1] <= COSTS[-1]
    assert (output / "reference.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.compiler
def test_costs_on_opencl_equal_those_on_the_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], opencl: None
) -> None:
    data = str(tmp_path / "donuts")
    assert make_data.main(["donuts", "--output", data]) == 0
    capsys.readouterr()
    flags = ["--epochs", str(EPOCHS), "--data", data]
    assert reference.main([*flags, "--output", str(tmp_path / "cpu")]) == 0
    on_cpu = capsys.readouterr().out
    result = subprocess.run(
        [sys.executable, REPOSITORY / "scripts/reference.py", *flags, "--output", tmp_path / "opencl"],
        env={**os.environ, "THEANO_FLAGS": "device=opencl0:0,force_device=True"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Device: cpu" in on_cpu
    assert "Device: opencl0:0" in result.stdout
    costs = costs_of(on_cpu)
    assert list(costs) == [epoch for epoch in reference.PUBLISHED if epoch < EPOCHS]
    assert costs_of(result.stdout) == pytest.approx(costs, rel=1e-3)
    # Rounding errors accumulate in all steps of the training.
    found, expected = (open_features(tmp_path / name).features.compute() for name in ("opencl", "cpu"))
    assert np.allclose(found, expected, rtol=0, atol=1e-3)
