"""Random sequences of runs over files that change, each of which is planned first: see `tests.support.sequences`."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardpress.output.disk import Disk
from shardpress.result import INDEX, Result
from tests.support import sequences
from tests.support.cases import ALL_CASES
from tests.support.standin import Workspace, install


class PlannedWorkspace(Workspace):
    """A workspace that checks the plan of each run: it changes nothing, and predicts what the run computes."""

    def run(self, output: Path, *flags: str, disk: Disk | None = None) -> int:
        before = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        encoder = Result.open(output).encoder if (output / INDEX).exists() else None
        planned_run = self.plan(output, *flags)
        assert {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()} == before
        code = super().run(output, *flags, disk=disk)
        if code:  # the disk has failed
            return code
        assert planned_run.problems == []
        result = Result.open(output)
        n_encoded = sum(part.n_rows for part in result.parts if output / part.file not in before)
        change = planned_run.change
        assert (change["n_kept"], change["n_encoded"]) == (result.n_rows - n_encoded, n_encoded)
        seconds = {stage.name: stage.seconds for stage in planned_run.stages}
        assert (seconds.get("training", 0) > 0) == (result.encoder != encoder)
        return code


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(500 if ALL_CASES else 20))
def test_each_run_of_a_random_sequence_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    install(monkeypatch)
    monkeypatch.setattr(sequences, "Workspace", PlannedWorkspace)
    sequences.run_sequence(tmp_path, seed, n_steps=4)
