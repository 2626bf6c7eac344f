"""Tests of `shardpress verify`: it detects any change of an output, and features that do not match their rows."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from msgspec.structs import replace

from shardpress.base.formats import digest
from shardpress.commands.registry import main
from shardpress.report.verify import verify
from shardpress.result.finished import GENERATION, INDEX, Result, load_model, result_bytes
from shardpress.result.records import Entry
from shardpress.run import encoding_stage
from tests.support import standin
from tests.support.helpers import refused, write_shard
from tests.support.interruptions import SIZES, FullAfter
from tests.support.protocol import edit
from tests.support.standin import Workspace, features_of

N_ROWS = sum(SIZES)
Edit = Callable[[h5py.File, int], object]


def rewrite_index(out: Path) -> None:
    """Rewrite the index with the current digests of the parts, as if the run had written these parts."""
    result = Result.open(out)
    parts = []
    for part in result.parts:
        data = (out / part.file).read_bytes()
        parts.append(replace(part, entry=Entry(part.file, len(data), digest([data]))))
    (out / INDEX).write_bytes(result_bytes(lambda file: None, result.model, result.facts, parts, {}, {}))


def fault_after(out: Path, part: str, row: int, change: Edit) -> str:
    """Change a row of a part, return the only fault that is found, and restore the part."""
    path = out / part
    whole = path.read_bytes()
    with h5py.File(path, "a") as file:
        change(file, row)
    rewrite_index(out)
    (fault,) = verify(str(out), 1000).faults
    assert fault.file == part
    path.write_bytes(whole)
    return fault.fault


def test_wrong_features_end_the_run_and_are_recomputed(
    workspace: Workspace, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(standin.Autoencoder):
        def encode(self, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            found = super().encode(rows, out)
            found[:1, 1] += 1e-4
            return found

    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["shardpress_kernels.autoencoder"], "Autoencoder", Wrong)
        assert workspace.run(out) == 79
    assert not (out / INDEX).exists()
    assert "row 0: feature 1 " in caplog.text
    assert "4 of 4 parts" in caplog.text
    assert workspace.run(out) == 0
    assert workspace.run(tmp_path / "undisturbed") == 0
    assert features_of(out) == features_of(tmp_path / "undisturbed")


def test_intact_output_is_verified(workspace: Workspace, out: Path, capsys: Any) -> None:
    assert workspace.run(out) == 0
    assert 0 < Result.open(out).facts.rows.verification.of_tolerance < 1
    os.utime(workspace.shards / "0.h5", (0, 0))  # the rows are recognized
    capsys.readouterr()
    assert main(["verify", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["faults"], facts["unchecked"], facts["rows"]["n_rows"]) == ([], [], N_ROWS)


def test_every_damaged_file_is_named_and_others_are_checked(workspace: Workspace, out: Path, capsys: Any) -> None:
    assert workspace.run(out) == 0
    assert workspace.run(out, "--retrain", "--seed", "1") == 0
    result = Result.open(out)
    files = [*result.files, *(GENERATION.format(each.generation) for each in result.facts.model.generations)]
    assert files[-1] == "generation-1.h5"
    for i, name in enumerate(files):
        path = out / name
        whole = path.read_bytes()
        damage = (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), None)[i % 3]
        path.unlink() if damage is None else path.write_bytes(damage)
        found = verify(str(out))
        assert [fault.file for fault in found.faults] == [name]
        assert found.rows.n_rows > N_ROWS - 20
        assert main(["verify", str(out)]) == 79
        assert f"{name}: " in capsys.readouterr().out
        path.write_bytes(whole)
    assert not verify(str(out)).faults


def test_damaged_index_is_a_fault_and_its_model_is_not_used(workspace: Workspace, out: Path, tmp_path: Path) -> None:
    assert workspace.run(out, disk=FullAfter("part", 1)) == 74
    with refused(66, str(out)):
        verify(str(out))
    assert workspace.run(out) == 0
    whole = (out / INDEX).read_bytes()
    for damage in (whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:], whole[:-1], b""):
        (out / INDEX).write_bytes(damage)
        for model in (out, out / INDEX):
            assert workspace.run(tmp_path / "other", "--model", str(model)) == 65
        (fault,) = verify(str(out)).faults
        assert fault.file == INDEX


def swap_rows(file: h5py.File, row: int) -> None:
    file["features"][row : row + 2] = file["features"][row : row + 2][::-1]


def mark(file: h5py.File, row: int) -> None:
    file["valid"][row] ^= True


def mark_as_bad(file: h5py.File, row: int) -> None:
    """Store a row like a bad row, so that readers skip it."""
    mark(file, row)
    file["features"][row] = np.nan


def test_wrong_rows_are_found_despite_correct_digests(workspace: Workspace, out: Path) -> None:
    workspace.add_shard("3.h5", np.full((4, 4), np.nan, np.float32))
    assert workspace.run(out, "--on-bad-data", "skip", "--max-bad", "4") == 0
    result = Result.open(out)
    good, _ = result.ranges[0]
    bad, rows = result.ranges[-1]
    assert fault_after(out, good.file, 3, swap_rows).startswith("row 3: feature ")
    texts = {fault_after(out, good.file, 1, change) for change in (mark, mark_as_bad)}
    texts.add(fault_after(out, bad.file, rows.first, mark).replace(f"row {rows.first}: ", "row 1: "))
    assert all(text.startswith("row 1: ") for text in texts)
    assert len(texts) == 2  # they differ for a good row stored as bad, and a bad row stored as good


@pytest.mark.process
def test_all_ranges_and_input_files_of_a_part_are_checked(
    workspace: Workspace, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part has many ranges, which are in another order than in its file, and dead rows."""
    monkeypatch.setattr(encoding_stage, "_LEAST_FILES", 9)
    rows = np.random.default_rng(4).normal(size=(5, 3, 4)).astype(np.float32)
    for i in range(5):
        workspace.add_shard(f"3{i}.h5", rows[i])
    model = out.with_name("model")
    assert workspace.run(model) == 0
    n_parts = len(Result.open(model).parts)
    assert workspace.run(out, "--model", str(model), disk=FullAfter("part", n_parts)) == 74
    paths = sorted(workspace.shards.iterdir(), reverse=True)  # the order of the result, but not of the parts
    assert workspace.run_on(paths, out, "--model", str(model)) == 0
    paths.remove(workspace.shards / "32.h5")
    assert workspace.run_on(paths, out, "--model", str(model), "--append", "--drop-missing") == 0
    result = Result.open(out)
    part = max(result.parts, key=lambda part: len(part.ranges))
    in_result = [each.first for other, each in result.ranges if other is part]
    assert len(part.ranges) == 3
    assert sorted(in_result) != in_result
    assert part.n_live < part.n_rows
    assert verify(str(out), 1000).faults == []

    def increase(file: h5py.File, row: int) -> None:
        file["features"][row, 0] += 0.1

    for each in part.ranges:
        fault = fault_after(out, part.file, each.first + 1, increase)
        assert fault.startswith(f"row {each.first + 1}: feature 0 ")
    rewrite_index(out)
    damaged = workspace.shards / "34.h5"
    edited = workspace.shards / "2.h5"
    damaged.write_bytes(b"text")
    edit(edited)
    found = verify(str(out), 1000)
    assert (found.faults, found.rows.n_rows) == ([], SIZES[0] + 9)
    assert {each.file for each in found.unchecked} == {str(damaged), str(edited)}


@pytest.mark.process
def test_rounding_error_is_allowed_once(workspace: Workspace, out: Path) -> None:
    assert workspace.run(out, "--storage-dtype", "float16") == 0
    result = Result.open(out)
    part = result.parts[0]
    with h5py.File(result.shards[0].path) as file:
        exact = load_model(out).encode(file["X"][:4])
    for share, n_faults in ((0.9, 0), (1.5, 1)):
        with h5py.File(out / part.file, "a") as file:
            file["features"][3, 0] = exact[3, 0] + share * part.max_error
        rewrite_index(out)
        assert len(verify(str(out), 1000).faults) == n_faults, share


def test_rows_of_a_partly_unreadable_shard_are_no_fault(workspace: Workspace, out: Path) -> None:
    """All of its rows are stored as bad, but most of them can be read if only these rows are requested."""
    rows = np.random.default_rng(3).normal(size=(64, 4)).astype(np.float32)
    path = write_shard(workspace.shards / "3.h5", rows, extras={"y": np.arange(64)}, chunks=(8, 4), fletcher32=True)
    damaged = Path(path).read_bytes().replace(rows[24:32].tobytes(), rows[16:24].tobytes())
    Path(path).write_bytes(damaged)
    flags = ["--on-bad-data", "skip", "--max-bad", "100%"]
    assert workspace.run(out, *flags) == 0
    found = verify(str(out), 1000)
    assert (found.faults, found.unchecked, found.rows.n_rows, found.rows.n_bad) == ([], [], N_ROWS, 56)
