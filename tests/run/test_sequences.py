"""Random sequences of runs over files that change: see `tests.support.sequences`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cases import ALL_CASES
from tests.support.sequences import run_sequence
from tests.support.standin import install


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(500 if ALL_CASES else 20))
def test_each_run_of_a_random_sequence_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    install(monkeypatch)
    run_sequence(tmp_path, seed, n_steps=4)
