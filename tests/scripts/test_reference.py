"""Test of the reference run of the model on two donuts: its costs as numbers and as a plot.

Sample: a tenth of the epochs.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from scripts import make_data, reference
from tests.support.cases import ALL_CASES

N_EPOCHS = 10_000 if ALL_CASES else 1001


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
def test_costs_fall_like_the_published_ones_and_end_lower(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(tmp_path / "donuts")
    output = tmp_path / "reference"
    assert make_data.main(["donuts", "--output", data]) == 0
    capsys.readouterr()
    assert reference.main(["--data", data, "--output", str(output), "--epochs", str(N_EPOCHS)]) == 0
    table = re.findall(r"^ *(\d+) +\S+ +(\S+)$", capsys.readouterr().out, re.M)
    published = {epoch: cost for epoch, cost in reference.PUBLISHED.items() if epoch < N_EPOCHS}
    assert [int(epoch) for epoch, _ in table] == list(published)
    costs = [float(cost) for _, cost in table]
    assert 0.1 <= costs[0] < 1, "the magnitude of the published start"
    assert all(later < earlier for earlier, later in pairwise(costs))
    assert costs[-1] <= min(published.values())
    assert (output / "reference.png").read_bytes().startswith(b"\x89PNG")
