"""Workers that would not do what the driver does are named before anything is done, with all that is otherwise."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client

from pipeline.cluster import checks
from pipeline.cluster.checks import (
    Environment,
    Probe,
    check_workers,
    compare_environments,
    compare_scheduler,
    describe_environment,
    describe_scheduler,
    refusal,
)
from pipeline.cluster.connection import workers_of
from pipeline.errors import ConfigError
from tests.support.clusters import Cluster, until
from tests.support.interpreters import REPOSITORY

HERE = "/proc/self/cwd"  # for each process its own: two that work in different folders see different files there


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """Of an output directory and an input that are there."""
    _make(tmp_path)
    return Probe(str(tmp_path), str(tmp_path), "stages/probe-0.txt", (str(tmp_path / "a.h5"),))


def _make(folder: Path, content: str = "4f1d") -> None:
    (folder / "stages").mkdir(parents=True)
    (folder / "stages/probe-0.txt").write_text(content)
    (folder / "a.h5").write_bytes(b"rows")


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Return to this directory, and leave out scratch directories of schedulers in other tests of this process."""
    before = os.getcwd()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "dask-scratch-space" not in entry])
    yield
    os.chdir(before)


@pytest.mark.process  # asks g++ for its version
def test_two_processes_alike_answer_alike(probe: Probe) -> None:
    first, second = describe_environment(probe), describe_environment(probe)
    assert first.written_file != second.written_file
    assert compare_environments(probe, first, second) == []


@pytest.mark.process  # asks g++ for its version
def test_what_is_otherwise_is_said_with_what_was_expected(probe: Probe) -> None:
    here = describe_environment(probe)
    facts = here.facts
    there = replace(
        here, facts={**facts, "numpy": "1.25.2", "processor": "Another One", "h5py": "not installed", "g++": "4.8"}
    )
    assert compare_environments(probe, here, there) == [
        f"numpy 1.25.2, expected {facts['numpy']}",
        f"h5py not installed, expected {facts['h5py']}",
        f"processor Another One, expected {facts['processor']}",
        f"g++ 4.8, expected {facts['g++']}",
    ]


@pytest.mark.process  # asks g++ for its version
def test_other_files_under_the_same_paths_are_noticed(probe: Probe, tmp_path: Path) -> None:
    here, driver_file, rows = describe_environment(probe), tmp_path / probe.driver_file, tmp_path / "a.h5"
    for change, words in (
        (lambda: driver_file.write_text("9e02"), "holds 9e02, expected holds 4f1d"),
        (lambda: driver_file.unlink(), "cannot be used (No such file or directory), expected holds 4f1d"),
    ):
        change()
        assert compare_environments(probe, here, describe_environment(probe)) == [f"file={driver_file} {words}"]
    driver_file.write_text("4f1d")
    rows.write_bytes(b"others")
    (found,) = compare_environments(probe, here, describe_environment(probe))
    assert found.startswith(f"file={rows} holds 6 bytes in inode ")
    (tmp_path / "stages").rename(tmp_path / "gone")
    assert (
        f"output={tmp_path} cannot be used (No such file or directory), expected can be used"
        in compare_environments(probe, here, describe_environment(probe))
    )


@pytest.mark.process  # asks g++ for its version
def test_what_a_worker_writes_must_be_there_for_the_driver(probe: Probe, tmp_path: Path) -> None:
    here, there = describe_environment(probe), describe_environment(probe)
    (tmp_path / there.written_file).unlink()
    (words,) = compare_environments(probe, here, there)
    assert "which it has written, cannot be used (No such file or directory) for the driver" in words


@pytest.mark.process  # asks g++ for its version
def test_processors_may_be_mixed_by_leave_only(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = replace(probe, mixed_processors=True)
    before = [describe_environment(each) for each in (probe, mixed)]
    monkeypatch.setattr(checks, "_processor", lambda: {"processor": "Another One", "its instructions": "avx2"})
    assert len(compare_environments(probe, before[0], describe_environment(probe))) == 2
    assert compare_environments(mixed, before[1], describe_environment(mixed)) == []


def test_another_checkout_of_the_same_version_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pipeline/run/a.py", "kernels/native/b.h", "pipeline/shardpress/c.py", "tests/d.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(checks, "_ROOT", tmp_path)
    before = checks._digest()
    for name, counts in (("tests/d.py", False), ("kernels/native/b.h", True), ("pipeline/run/a.py", True)):
        (tmp_path / name).write_text("2")
        assert (checks._digest() != before) is counts, name
        before = checks._digest()


def test_workers_with_the_same_trouble_share_a_sentence() -> None:
    assert refusal({"a": [], "b": []}) is None
    alike = ["numpy 1.25.2, expected 1.26.4", "Python 3.12.1, expected 3.11.2"]
    error = refusal({**{f"w{i}": alike for i in range(5)}, "x": ["it cannot be asked (OSError)"], "y": []})
    assert isinstance(error, ConfigError)
    assert str(error).startswith(
        "6 of 7 workers would not do what this process does. w0, w1, w2 and 2 more: numpy 1.25.2, expected 1.26.4; "
        "Python 3.12.1, expected 3.11.2. x: it cannot be asked (OSError). Give all of them"
    )


def test_k5_a_scheduler_that_could_not_take_tasks_apart_is_refused(probe: Probe) -> None:
    class Scheduler:
        def __init__(self, **other: str) -> None:
            self.other = other

        def run_on_scheduler(self, ask: Callable[[], dict[str, str]]) -> dict[str, str]:
            if not self.other:
                raise ModuleNotFoundError("No module named\n'pipeline'")
            return {**ask(), **self.other}

    for scheduler, words in (
        (Scheduler(), r"it cannot be asked \(ModuleNotFoundError: No module named 'pipeline'\)\. Start it"),
        (Scheduler(numpy="1.0", dask="2020.1"), r"tasks: dask 2020\.1, expected [0-9.]+\. Start it"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_workers(scheduler, probe)  # type: ignore[arg-type]


@pytest.mark.process
def test_k5_k6_a_worker_with_other_packages_or_another_disk_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder, content in (("here", "4f1d"), ("there", "9e02")):
        _make(tmp_path / folder, content)
    os.chdir(tmp_path / "here")
    (tmp_path / "other").mkdir()
    # What a worker says whose environment is another one.
    (tmp_path / "other/sitecustomize.py").write_text(
        "import importlib.metadata as m\nv = m.version\nm.version = lambda name: '0.1' if name == 'h5py' else v(name)\n"
    )
    other = {"PYTHONPATH": f"{tmp_path / 'other'}:{REPOSITORY}"}
    probe = Probe(HERE, f"{HERE}", "stages/probe-0.txt", (f"{HERE}/a.h5",))
    with Cluster(tmp_path / "cluster") as cluster, _client(cluster) as client:
        cluster.start_worker("good", directory=tmp_path / "here")
        cluster.start_worker("elsewhere", directory=tmp_path / "there")
        cluster.start_worker("older", directory=tmp_path / "here", **other)
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        cluster.start_worker("exposed", "--local-directory", str(tmp_path / "open"), directory=tmp_path / "here")
        client.wait_for_workers(4, timeout=240)
        with pytest.raises(ConfigError) as caught:
            check_workers(client, probe)
        said = str(caught.value)
        assert said.startswith("3 of 4 workers would not do what this process does. ")
        assert "older at tcp://127.0.0.1:" in said
        assert ": h5py 0.1, expected " in said
        assert "elsewhere at tcp://127.0.0.1:" in said
        assert f"file={HERE}/stages/probe-0.txt holds 9e02, expected holds 4f1d" in said
        assert "good" not in said
        assert "exposed at tcp://127.0.0.1:" in said
        assert f"{tmp_path / 'open'} has mode 0777, so that other users can rename" in said
        for name in ("elsewhere", "older", "exposed"):
            cluster.kill(name)
        until(lambda: len(workers_of(client)) == 1, "the dead to be missed")
        check_workers(client, probe)
        with caplog.at_level(logging.WARNING):
            cluster.start_worker("late", "--nanny", directory=tmp_path / "here", **other)
            until(lambda: "turned away" in caplog.text, f"a word of it: {cluster.said('late')}")
        assert "late at tcp://127.0.0.1:" in caplog.text
        assert cluster.processes["late"].wait(240) == 0
        assert [each["name"] for each in workers_of(client).values()] == ["good"]
        client.close()  # the run is over, and what it asked for no longer counts
        cluster.start_worker("later", directory=tmp_path / "here", **other)
        with _client(cluster) as another:
            another.wait_for_workers(2, timeout=240)


def _client(cluster: Cluster) -> Client:
    return Client(scheduler_file=str(cluster.file), set_as_default=False, timeout=240)


@pytest.mark.process  # asks g++ for its version
def test_an_answer_that_lacks_something_differs(probe: Probe) -> None:
    here = describe_environment(probe)
    there = Environment({name: said for name, said in here.facts.items() if name != "dask"}, here.written_file)
    assert compare_environments(probe, here, there) == [f"dask None, expected {here.facts['dask']}"]


@pytest.mark.process  # asks g++ for its version
def test_a_worker_that_others_can_give_modules_differs(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = describe_environment(probe)
    scratch = tmp_path / "dask-scratch-space/worker-1"
    scratch.mkdir(parents=True)
    monkeypatch.syspath_prepend(scratch)
    assert compare_environments(probe, here, describe_environment(probe)) == []
    assert compare_scheduler(describe_scheduler()) == []
    scratch.chmod(0o777)
    (words,) = compare_environments(probe, here, describe_environment(probe))
    assert f"{scratch} has mode 0777" in words
    (words,) = compare_scheduler(describe_scheduler())
    assert str(scratch) in words
    scratch.chmod(0o755)
    scratch.parent.chmod(0o777)
    (words,) = compare_environments(probe, here, describe_environment(probe))
    assert f"{scratch.parent} has mode 0777" in words
