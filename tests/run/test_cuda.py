"""Tests of whole runs on the emulated CUDA card: their results, and their end after each fault of a card."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from shardpress.model.device import TILE_ROWS
from shardpress.result.finished import load_model
from tests.support.clusters import Cluster, until
from tests.support.cuda.stub import variables
from tests.support.device_child import make_rows
from tests.support.helpers import features_in, write_shard
from tests.support.killing import Program, features_of
from tests.support.logged import mentions
from tests.support.processes import LAST_LINE, ends_well
from tests.support.tolerances import assert_close

pytestmark = pytest.mark.process


LAUNCHES_AT_START = 4  # number of kernel launches before a worker gets its first part


@dataclass(frozen=True)
class Undisturbed:
    """A run on a card without a fault, and the log of the stub."""

    output: Path
    calls: list[str]

    def allocations(self, n_bytes: int) -> list[int]:
        """Return the numbers of the allocations of this size, counted as for the stub's ``STUB_OOM_AT``."""
        sizes = [int(line.split()[1]) for line in self.calls if line.startswith("allocate ")]
        return [i for i, size in enumerate(sizes, 1) if size == n_bytes]


# Rows, network and rule are those of test_devices.py, so that their code is compiled only once.
N_INPUTS = 20
ROWS = make_rows()[:600, :N_INPUTS]
BATCH = 64
NETWORK = ["--preset", "reference", "--validation-fraction", "0.05", "--n-features", "4"]
# With one thread, the order of the card's calls is fixed.
SETTINGS = [*NETWORK, "--epochs", "2", "--batch-size", f"{BATCH}", "--threads", "1"]


def on_card(shards: Path, **settings: str | Path | int) -> Program:
    """Return the program on a stub with these settings, which delays copies as current drivers may.

    libgpuarray does not cache memory, so that every array is allocated where it is needed.
    """
    card = variables(True, hold="downloads", **settings)
    flags = "device=cuda,gpuarray.preallocate=-1"
    return Program(["--input", str(shards), *SETTINGS], THEANO_FLAGS=flags, **card)


@pytest.fixture(scope="module")
def shards(pygpu: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for i, rows in enumerate(np.split(ROWS, 2)):
        write_shard(folder / f"{i}.h5", rows)
    return folder


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = on_card(shards, log=folder / "log").run(folder / "out")
    assert ended.code == 0, ended.lines
    assert ended.has_line(r" INFO device: cuda \(Stub 0\)$")
    return Undisturbed(folder / "out", (folder / "log").read_text().splitlines())


def test_a_card_gives_the_features_of_the_model_and_frees_its_memory(undisturbed: Undisturbed) -> None:
    expected = load_model(undisturbed.output).encode(ROWS)
    assert_close(features_in(undisturbed.output), expected, "cuda", "features")
    calls = Counter(line.split()[0] for line in undisturbed.calls)
    n_steps = 2 * 9
    assert calls["cublasSgemm_v2"] >= 5 * n_steps, "the card computes every product"
    assert calls["cuMemFree_v2"] >= calls["cuMemAlloc_v2"] - 20  # except for the memory that is used until the end


def test_a_run_allocates_from_preallocated_memory(shards: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    program = on_card(shards, log=tmp_path / "log")
    program.environment["THEANO_FLAGS"] = "device=cuda,gpuarray.preallocate=64"
    assert program.run(tmp_path / "out", "--preset", "none", "--model", str(undisturbed.output)).code == 0
    np.testing.assert_array_equal(features_in(tmp_path / "out"), features_in(undisturbed.output))
    sizes = [int(line.split()[1]) for line in (tmp_path / "log").read_text().splitlines() if line[:9] == "allocate "]
    assert max(sizes) == 64 << 20
    assert len(sizes) < 10 < len([line for line in undisturbed.calls if line.startswith("allocate ")])


def test_encoding_continues_with_fewer_rows_if_memory_runs_out(
    shards: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    tile = undisturbed.allocations(TILE_ROWS * N_INPUTS)[-1]
    ended = on_card(shards, oom_at=tile).run(tmp_path / "out")
    assert ended.code == 0, ended.lines
    assert ended.has_line(r" WARNING .*\bmemory\b.* \d+ rows\b")
    assert_close(features_in(tmp_path / "out"), features_in(undisturbed.output), "cuda", "features")


def test_training_stops_if_device_memory_runs_out(shards: Path, undisturbed: Undisturbed, tmp_path: Path) -> None:
    minibatch = undisturbed.allocations(4 * BATCH * N_INPUTS)[0]  # in float32
    ended = on_card(shards, oom_at=minibatch).run(tmp_path / "out")
    assert ended.code == 69
    assert ended.has_line(r"DeviceError: .*\bmemory\b.* --device-memory-budget\b.* --batch-size\b")
    assert LAST_LINE.search(ended.lines[-1])


def test_a_run_resumes_after_losing_its_card_in_training(
    shards: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    launches = [line for line in undisturbed.calls if line.startswith(("launch ", "cublas"))]
    ended = on_card(shards, lost_at=len(launches) // 2).run(tmp_path / "out")
    assert ended.code == 75, ended.lines
    assert mentions(ended.lines[-1], "scan")
    assert not mentions(ended.lines[-1], "training")
    assert on_card(shards).run(tmp_path / "out").code == 0
    assert features_of(tmp_path / "out") == features_of(undisturbed.output)


def test_a_worker_that_lost_its_card_hands_its_work_to_another(
    shards: Path, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    settings = on_card(shards).environment
    program = Program(["--input", str(shards), "--model", str(undisturbed.output)])  # computes nothing itself
    with Cluster(tmp_path / "cluster", **settings) as cluster:
        cluster.start_worker("failing", **variables(True, lost_at=LAUNCHES_AT_START + 1))
        process = program.start(tmp_path / "out", "--scheduler", str(cluster.file))
        until(lambda: cluster.processes["failing"].poll() is not None, "its end")
        cluster.start_worker("working")
        log = ends_well(process)
    assert re.search(r" WARNING cluster: retiring worker failing\b.*\bdevice\b", log)
    assert features_of(tmp_path / "out") == features_of(undisturbed.output)
