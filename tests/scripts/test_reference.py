"""Test of the reference run of the model on two donuts: its costs as numbers and as a plot."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from scripts import make_data, reference


@pytest.mark.process
@pytest.mark.compiler
def test_costs_fall_like_the_published_ones_and_end_lower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(tmp_path / "donuts")
    output = tmp_path / "reference"
    assert make_data.main(["donuts", "--output", data]) == 0
    capsys.readouterr()
    assert reference.main(["--data", str(tmp_path / "none")]) == 66
    assert "make_data.py" in capsys.readouterr().err
    assert reference.main(["--data", data, "--output", str(output)]) == 0
    table = re.findall(r"^ *(\d+) +\S+ +(\S+)$", capsys.readouterr().out, re.M)
    assert [int(epoch) for epoch, _ in table] == list(reference.PUBLISHED)
    costs = [float(cost) for _, cost in table]
    assert 0.1 <= costs[0] < 1, "the magnitude of the published start"
    assert all(later < earlier for earlier, later in pairwise(costs))
    assert costs[-1] <= min(reference.PUBLISHED.values())
    assert (output / "reference.png").read_bytes().startswith(b"\x89PNG")
