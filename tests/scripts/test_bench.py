"""Tests of the comparison: results are compared before timing, measurements alternate, and limits are checked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.benchmarks import compare as bench
from scripts.benchmarks import harness, run
from scripts.benchmarks.instruction_sets import limits
from scripts.benchmarks.othertree import Tree
from shardpress.features import open_features


class FakeProgram:
    """A program that takes the given seconds and records its measurements in a list."""

    def __init__(self, name: str, seconds: list[float], measured: list[str]) -> None:
        self.name = name
        self.about = f"about {name}"
        self._seconds = iter([9.0, *seconds])
        self._measured = measured

    def seconds(self, times: int = 1) -> float:
        self._measured.append(self.name)
        return next(self._seconds)

    def __enter__(self) -> FakeProgram:
        return self

    def __exit__(self, *error: object) -> None:
        pass


Compare = Callable[..., tuple[dict[str, float], list[str]]]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Compare programs with these seconds and results; return their ratios and the order of the measurements."""

    def run(seconds: dict[str, list[float]], results: dict[str, float] | None = None) -> Any:
        measured: list[str] = []

        def start(name: str, case: str, **sizes: Any) -> FakeProgram:
            np.savez(tmp_path / f"{name}.npz", features=np.full(3, (results or {}).get(name, 1.0)))
            return FakeProgram(name, seconds[name], measured)

        runner = bench.Bench(tmp_path, 3)
        monkeypatch.setattr(runner, "start", start)
        ratios = runner.compare("encode", "some rows", list(seconds), {}, (0.0, 1e-4))
        return ratios, measured[len(seconds) :]

    return run


def test_ratios_are_medians_over_alternating_rounds(compare: Compare) -> None:
    ratios, measured = compare({"ours": [1.0, 2.0, 4.0], "jax": [3.0, 3.0, 4.0]})
    assert measured == ["ours", "jax"] * 3
    assert ratios == {"ours": 2.0, "jax": 1.5}


def test_different_results_are_refused_before_timing(compare: Compare) -> None:
    with pytest.raises(RuntimeError, match=r"jax: .*0\.5"):
        compare({"ours": [1.0], "jax": [1.0]}, {"jax": 1.5})
    with pytest.raises(RuntimeError, match="blas: "):
        compare({"ours": [1.0], "blas": [1.0], "jax": [1.0]}, {"blas": 1.5})
    compare({"ours": [1.0] * 3, "sklearn": [1.0] * 3}, {"sklearn": 1.5})  # its model is different
    found, _ = compare({"ours": [1.0] * 3, "jax": [2.0] * 3, "torch": [9.0] * 3}, {"torch": np.nan})
    assert found == {"ours": 1.0, "jax": 2.0}, "a peer that cannot do the work is left out"


def test_requirements_are_minima_or_maxima(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = bench.Bench(tmp_path, 1)
    runner.require("files", 1.2, least=1.25)
    runner.require("growth", 1.04, most=1.05)
    runner.print_requirements()
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.split() == ["files", ">=", "1.25", "1.200", "NOT", "REACHED"]
    assert second.split() == ["growth", "<=", "1.05", "1.040"]


@pytest.mark.process
def test_comparison_with_a_commit_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES", bench.SHAPES[:1])
    monkeypatch.setattr(bench, "other_tree", lambda commit: Tree(harness.ROOT, "0123abcd"))
    flags = ["--against", "HEAD", "--rounds", "1", "--output", str(tmp_path)]
    assert run.main(["compare", "step", *flags]) == 0
    saved = json.loads((tmp_path / "bench.json").read_text())
    assert saved["against"] == "0123abcd"
    assert [set(result["seconds"]) for result in saved["results"]] == [{"ours", "before"}]
    assert [(each["least"], each["what"][-8:]) for each in saved["requirements"]] == [(0.97, "0123abcd")]


@pytest.mark.process
def test_comparison_runs_and_a_missing_card_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "SHAPES", bench.SHAPES[:1])
    flags = ["step", "device", "--device", "cuda7", "--without-peers", "--rounds", "1", "--output", str(tmp_path)]
    assert run.main(["compare", *flags]) == 0
    assert re.search(r"^.*\bdevice: .*\bcuda7\b", capsys.readouterr().out, re.MULTILINE)
    step, device = json.loads((tmp_path / "bench.json").read_text())["results"]
    assert step["what"] == "784 -> 64, minibatch 512"
    assert set(step["seconds"]) == {"ours", "blas"}
    assert step["about"]["blas"].startswith("OpenBLAS, ")
    assert device["case"] == "device"
    for wrong in (["growth", "--against", "HEAD"], ["step", "--against", "no-such-commit"]):
        assert run.main(["compare", *wrong]) == 2


@pytest.mark.process
def test_the_benchmark_of_an_append_measures_both_programs(tmp_path: Path) -> None:
    flags = ["--files", "3", "--rows", "20", "--rounds", "1", "--output", str(tmp_path)]
    assert run.main(["append", *flags]) == 0
    seconds = json.loads((tmp_path / "append.json").read_text())
    assert [len(each) for each in seconds.values()] == [1, 1]
    for name, n_rows in (("encoded", 200), ("output", 460)):  # ten files, and 3 + 10 + 10 files
        assert open_features(tmp_path / name).manifest["n_rows"] == n_rows


@pytest.mark.process
def test_openblas_uses_the_requested_instruction_set(tmp_path: Path) -> None:
    with bench.Bench(tmp_path, 1, variables=limits("sse2")).start("blas", "square", n=8) as blas:
        assert blas.about.split()[-1] in ("Katmai", "Prescott")  # they are equal


@pytest.mark.process
def test_shards_of_every_layout_hold_the_same_rows(tmp_path: Path) -> None:
    plain = bench.make_shards(tmp_path / "plain", 4096, 2, dtype="u1")
    for i, (name, (options, _, _)) in enumerate(bench.LAYOUTS.items()):
        shards = bench.make_shards(tmp_path / str(i), 4096, 2, **options)
        bench.drop_from_page_cache(shards)
        for path in sorted(shards.iterdir()):
            with h5py.File(path) as file, h5py.File(plain / path.name) as expected:
                assert file["X"].dtype == options["dtype"], name
                assert file["X"].chunks == options.get("chunks"), name
                np.testing.assert_array_equal(file["X"][:], expected["X"][:], err_msg=name)


@pytest.mark.process
def test_peak_memory_is_that_of_the_program_alone() -> None:
    """It does not include the process that started the program."""
    heap = np.ones(2**27, np.uint8)
    assert 2**23 < bench.extract("--help") < len(heap)
