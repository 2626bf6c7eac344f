"""Tests of the comparison: results are compared before timing, measurements alternate, and limits are checked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from scripts.benchmarks import compare as bench
from scripts.benchmarks import harness, run
from scripts.benchmarks.instruction_sets import hide, limits
from scripts.benchmarks.othertree import Tree
from shardpress.features import open_features
from tests.support.parts import finished


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
    # Its model is different.
    compare({"ours": [1.0] * 3, "sklearn": [1.0] * 3}, {"sklearn": 1.5})


def test_peer_with_deviating_results_is_left_out(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    found, _ = compare({"ours": [1.0] * 3, "jax": [2.0] * 3, "torch": [9.0] * 3}, {"torch": np.nan})
    assert found == {"ours": 1.0, "jax": 2.0}
    assert "torch: " in capsys.readouterr().out


def test_requirements_are_minima_or_maxima(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = bench.Bench(tmp_path, 1)
    runner.require("files", 1.2, least=1.25)
    runner.require("growth", 1.04, most=1.05)
    runner.print_requirements()
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.split() == ["files", ">=", "1.25", "1.200", "NOT", "REACHED"]
    assert second.split() == ["growth", "<=", "1.05", "1.040"]


def test_another_commit_is_the_only_peer_and_measured_with_other_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []
    seconds = {"ours": [1.0, 2.0, 4.0], "before": [0.9, 1.0, 4.4]}

    def start(name: str, case: str, **sizes: Any) -> FakeProgram:
        path = {"ours": tmp_path / "ours.npz", "before": tmp_path / "before/ours.npz"}[name]
        path.parent.mkdir(exist_ok=True)
        np.savez(path, features=np.full(3, len(name)))
        return FakeProgram(name, seconds[name], measured)

    runner = bench.Bench(tmp_path, 3, commit=Tree(tmp_path, "0123abcd"))
    monkeypatch.setattr(runner, "start", start)
    ratios = runner.compare("encode", "some rows", ["ours", "blas", "jax"], {}, (0.0, 1e-4))
    runner.require_of_commit("encode some rows", ratios)
    runner.print_commit()
    runner.print_requirements()
    assert measured[2:] == ["ours", "before"] * 3
    printed = capsys.readouterr().out
    assert "features differs from ours by 2" in printed
    assert "| encode some rows | 0.900 | 0.500 | 1.100 |" in printed
    assert printed.split()[-4:] == ["0.97", "0.900", "NOT", "REACHED"]


PEERS_OF_COMMIT = """
import json, os, sys
from pathlib import Path
name, case, folder, sizes = sys.argv[1:]
facts = {"name": name, "case": case, "sizes": json.loads(sizes), "root": os.getcwd(), "path": os.environ["PYTHONPATH"]}
facts["input"] = (Path(folder) / "input.npz").read_text()
print(json.dumps(facts), flush=True)
for line in sys.stdin:
    print(2.0 * int(line), flush=True)
"""


@pytest.mark.process
def test_another_commit_executes_its_own_code_with_a_model_of_its_own(tmp_path: Path) -> None:
    tree = Tree(tmp_path / "tree", "0123abcd")
    peers = tree.root / "scripts/benchmarks/peers.py"
    peers.parent.mkdir(parents=True)
    peers.write_text(PEERS_OF_COMMIT)
    tree.python.parent.mkdir(parents=True)
    tree.python.symlink_to(sys.executable)
    runner = bench.Bench(tmp_path / "bench", 1, commit=tree)
    (tmp_path / "bench/input.npz").write_text("the input")
    with runner.start("before", "encode_files", model=str(tmp_path / "bench/model"), shards="s") as program:
        assert program.seconds(3) == 2.0
    facts = json.loads(program.about)
    assert (facts["name"], facts["case"], facts["input"]) == ("ours", "encode_files", "the input")
    assert facts["sizes"] == {"model": str(tmp_path / "bench/before/model"), "shards": "s"}
    assert (facts["root"], facts["path"]) == (str(tree.root), str(tree.root))


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
@pytest.mark.parametrize("flags", [["growth", "--against", "HEAD"], ["step", "--against", "no-such-commit"]])
def test_impossible_comparison_with_a_commit_is_refused(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert run.main(["compare", *flags]) == 2
    assert re.search("--against: .*(growth|no-such-commit)", capsys.readouterr().err)


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


@pytest.mark.process
def test_the_benchmark_of_an_append_measures_both_programs(tmp_path: Path) -> None:
    flags = ["--files", "3", "--rows", "20", "--rounds", "1", "--output", str(tmp_path)]
    assert run.main(["append", *flags]) == 0
    seconds = json.loads((tmp_path / "append.json").read_text())
    assert [len(each) for each in seconds.values()] == [1, 1]
    for name, n_rows in (("encoded", 200), ("output", 460)):  # ten files, and 3 + 10 + 10 files
        assert open_features(tmp_path / name).manifest["n_rows"] == n_rows


def test_all_programs_use_the_same_instruction_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This includes the processes that run the whole program."""
    found: list[dict[str, str]] = []

    def started(*arguments: Any, env: dict[str, str], **options: Any) -> None:
        found.append(env)
        raise InterruptedError

    runner = bench.Bench(tmp_path, 1, isa="avx2")
    monkeypatch.setattr(subprocess, "Popen", started)
    monkeypatch.setattr(subprocess, "run", started)
    cases = [case for case in bench.CASES.values() if case is not bench.files]
    for case in cases:
        with pytest.raises(InterruptedError):
            case(runner)
    assert len(found) == len(cases)
    for env in found:
        assert "-march=x86-64-v3" in env["THEANO_FLAGS"]
        assert env["OPENBLAS_CORETYPE"] == "Haswell"
        assert env["ATEN_CPU_CAPABILITY"] == "avx2"
        assert env["XLA_FLAGS"] == "--xla_cpu_max_isa=AVX2"
    assert found[-1]["THEANO_FLAGS"].endswith(",device=cuda")


def test_drawn_shapes_depend_on_the_seed_and_are_not_round() -> None:
    for seed in range(20):
        shapes = bench.draw_shapes(seed)
        assert shapes == bench.draw_shapes(seed)
        assert shapes != bench.draw_shapes(seed + 1)
        assert len(shapes) == 10
        for shape in shapes:
            n_inputs, n_features = shape.network.widths
            batch_size = shape.batch_size
            assert 20 <= n_inputs <= 5000
            assert 3 <= n_features <= min(300, n_inputs - 1)
            assert 128 <= batch_size <= 512
            assert all(number % 8 and number % 10 for number in (n_inputs, n_features, batch_size))


@pytest.mark.process
def test_peer_that_exits_early_is_left_out_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch does so if it was built without support for the card."""
    ends = tmp_path / "python"
    ends.write_text("#!/bin/sh\necho 'a warning' >&2; echo 'no CUDA' >&2; exit 1\n")
    ends.chmod(0o755)
    monkeypatch.setattr(harness, "PEERS", ends)
    runner = bench.Bench(tmp_path, 1)
    with ExitStack() as stack:
        assert runner.start_all(stack, "square", ["torch"], {"n": 8}) == []
    assert re.fullmatch(r"  not measured: torch .*: no CUDA\. See .*torch\.log\n", capsys.readouterr().out)


@pytest.mark.process
def test_peer_needs_no_package_of_ours_and_reads_our_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    packages = Path(np.__file__).parents[1]  # without site, the file that adds our packages is not read
    python.write_text(f'#!/bin/sh\nPYTHONPATH=$PYTHONPATH:{packages} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(harness, "PEERS", python)
    finished(tmp_path / "model", 3)
    shards = bench.make_shards(tmp_path / "shards", 9, 1, dtype="f4", n_inputs=4)
    sizes = {"shards": str(shards), "model": str(tmp_path / "model")}
    with bench.Bench(tmp_path, 1).start("sklearn", "encode_files", **sizes):
        assert np.load(tmp_path / "sklearn.npz")["features"].shape == (9, 2)


@pytest.mark.process
def test_openblas_uses_the_requested_instruction_set(tmp_path: Path) -> None:
    with bench.Bench(tmp_path, 1, variables=limits("sse2")).start("blas", "square", n=8) as blas:
        assert blas.about.split()[-1] in ("Katmai", "Prescott")  # they are equal


_CPUID_PROGRAM = """
#include <cpuid.h>
#include <stdio.h>
int main(void)
{
    for (unsigned leaf = 0, a, b, c, d; leaf < 8; leaf++) {
        __cpuid_count(leaf, 0, a, b, c, d);
        if (leaf != 1) /* leaf 1 also contains the number of the core */
            printf("%u %x %x %x %x\\n", leaf, a, b, c, d);
    }
}
"""


@pytest.mark.process
def test_hiding_instructions_changes_no_other_processor_facts(tmp_path: Path) -> None:
    library = hide("avx2", tmp_path)
    program = tmp_path / "cpuid"
    assert (library is None) == ("cpuid_fault" not in Path("/proc/cpuinfo").read_text().split())
    program.with_suffix(".c").write_text(_CPUID_PROGRAM)
    subprocess.run(["gcc", "-o", str(program), f"{program}.c"], check=True)
    # The program runs on one core, because the cores of a processor can differ.
    command = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0))), str(program)]
    before, after = (
        [line.split() for line in subprocess.check_output(command, env=env, text=True).splitlines()]
        for env in ({**os.environ}, os.environ | ({"LD_PRELOAD": str(library)} if library else {}))
    )
    assert before[:-1] == after[:-1]
    _, _, facts_before, *_ = before[-1]
    _, _, facts_after, *_ = after[-1]
    avx2 = 1 << 5
    avx512f = 1 << 16
    assert int(facts_after, 16) & avx2 == int(facts_before, 16) & avx2
    assert library is None or not int(facts_after, 16) & avx512f


def test_missing_instruction_set_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "missing", lambda name: ["avx512f"])
    assert run.main(["compare", "--isa", "avx512", "--without-peers"]) == 2
    error = capsys.readouterr().err
    assert "--isa avx512: " in error
    assert "avx512f" in error


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
