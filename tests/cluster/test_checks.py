"""Tests of the worker checks: a worker that differs from the driver is refused, and all differences are listed."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import Client

from shardpress.cluster import checks
from shardpress.cluster.checks import (
    Environment,
    check_workers,
    compare_environments,
    compare_scheduler,
    describe_environment,
    describe_scheduler,
    refusal,
)
from shardpress.cluster.connection import workers_of
from shardpress.cluster.probe import Probe
from shardpress.errors import ConfigError
from tests.support.clusters import Cluster, until
from tests.support.interpreters import search_path
from tests.support.logged import mentions

HERE = "/proc/self/cwd"  # processes with different working directories find different files under this path


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """Return a probe with an existing output directory and input."""
    _make(tmp_path)
    return Probe(str(tmp_path), str(tmp_path), (str(tmp_path / "a.h5"),))


def _make(folder: Path) -> None:
    (folder / "work").mkdir(parents=True)
    (folder / "a.h5").write_bytes(b"rows")


@pytest.fixture(autouse=True)
def restore_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Restore the working directory, and hide scratch directories of schedulers in other tests from `sys.path`."""
    before = os.getcwd()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "dask-scratch-space" not in entry])
    yield
    os.chdir(before)


@pytest.mark.process  # runs g++ to get its version
def test_equal_processes_have_equal_descriptions(probe: Probe) -> None:
    first = describe_environment(probe)
    second = describe_environment(probe)
    assert first.written_file != second.written_file
    assert compare_environments(probe, first, second) == []


@pytest.mark.process  # runs g++ to get its version
def test_differences_name_both_values(probe: Probe) -> None:
    driver = describe_environment(probe)
    facts = driver.facts
    worker = replace(
        driver,
        facts={**facts, "numpy": "1.25.2", "processor": "Another One", "h5py": "not installed", "g++": "4.8"},
    )
    changed = [name for name in facts if worker.facts[name] != facts[name]]
    found = compare_environments(probe, driver, worker)
    assert sorted(changed) == ["g++", "h5py", "numpy", "processor"]
    for name, line in zip(changed, found, strict=True):
        assert mentions(line, f"{name} {worker.facts[name]}", facts[name])


@pytest.mark.process  # runs g++ to get its version
def test_other_files_under_the_same_paths_are_detected(probe: Probe, tmp_path: Path) -> None:
    driver = describe_environment(probe)
    rows = tmp_path / "a.h5"
    rows.write_bytes(b"others")
    (found,) = compare_environments(probe, driver, describe_environment(probe))
    assert mentions(found, f"file={rows}", "6 bytes")
    (tmp_path / "work").rename(tmp_path / "gone")
    found_lines = compare_environments(probe, driver, describe_environment(probe))
    assert any(mentions(line, f"output={tmp_path}", os.strerror(errno.ENOENT)) for line in found_lines)


@pytest.mark.process  # runs g++ to get its version
def test_files_written_by_a_worker_must_be_visible_to_the_driver(probe: Probe, tmp_path: Path) -> None:
    driver = describe_environment(probe)
    worker = describe_environment(probe)
    (tmp_path / worker.written_file).unlink()
    (words,) = compare_environments(probe, driver, worker)
    assert mentions(words, f"file={tmp_path / worker.written_file}", os.strerror(errno.ENOENT))


@pytest.mark.process  # runs g++ to get its version
def test_mixed_processors_must_be_allowed(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = replace(probe, mixed_processors=True)
    before = [describe_environment(each) for each in (probe, mixed)]
    monkeypatch.setattr(checks, "_processor", lambda: {"processor": "Another One", "instruction sets": "avx2"})
    assert len(compare_environments(probe, before[0], describe_environment(probe))) == 2
    assert compare_environments(mixed, before[1], describe_environment(mixed)) == []


def test_another_checkout_of_the_same_version_is_different(tmp_path: Path) -> None:
    roots = [str(tmp_path / "pipeline"), str(tmp_path / "kernels")]
    files = {
        "pipeline/shardpress/run/a.py": True,
        "kernels/shardpress_kernels/native/b.h": True,
        "pipeline/theirs/c.py": False,
    }
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    before = checks._digest(roots)
    for name, counts in files.items():
        (tmp_path / name).write_text("2")
        assert (checks._digest(roots) != before) is counts, name
        before = checks._digest(roots)


def test_workers_with_equal_differences_share_a_sentence() -> None:
    assert refusal({"a": [], "b": []}) is None
    differences = ["numpy 1.25.2, expected 1.26.4", "Python 3.12.1, expected 3.11.2"]
    error = refusal({**{f"w{i}": differences for i in range(5)}, "x": ["it cannot be queried (OSError)"], "y": []})
    assert isinstance(error, ConfigError)
    assert mentions(str(error), "6 of 7", "w0, w1, w2", 2, *differences, "x", "OSError")
    assert str(error).count(differences[0]) == 1


def test_a_scheduler_with_other_packages_is_refused(probe: Probe) -> None:
    class Scheduler:
        def __init__(self, **other: str) -> None:
            self.other = other

        def run_on_scheduler(self, function: Callable[[], dict[str, str]]) -> dict[str, str]:
            if not self.other:
                raise ModuleNotFoundError("No module named\n'shardpress'")
            return {**function(), **self.other}

    for scheduler, words in (
        (Scheduler(), "ModuleNotFoundError: No module named 'shardpress'"),
        (Scheduler(numpy="1.0", dask="2020.1"), r"\bdask 2020\.1\b"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_workers(scheduler, probe)  # type: ignore[arg-type]


@pytest.mark.process
def test_a_worker_with_other_packages_or_another_disk_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("here", "there"):
        _make(tmp_path / folder)
    os.chdir(tmp_path / "here")
    (tmp_path / "other").mkdir()
    # With this file in its import path, a worker reports another version of h5py.
    (tmp_path / "other/sitecustomize.py").write_text(
        "import importlib.metadata as m\nv = m.version\nm.version = lambda name: '0.1' if name == 'h5py' else v(name)\n"
    )
    other = {"PYTHONPATH": f"{tmp_path / 'other'}:{search_path()}"}
    probe = Probe(HERE, f"{HERE}", (f"{HERE}/a.h5",))
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
        message = str(caught.value)
        assert mentions(message, "3 of 4")
        assert mentions(message, "older", "h5py 0.1")
        assert mentions(message, "elsewhere", f"file={HERE}/a.h5", "4 bytes")
        assert "good" not in message
        assert mentions(message, "exposed", tmp_path / "open", "0777")
        for name in ("elsewhere", "older", "exposed"):
            cluster.kill(name)
        until(lambda: len(workers_of(client)) == 1, "dead workers to be noticed")
        check_workers(client, probe)
        with caplog.at_level(logging.WARNING):
            cluster.start_worker("late", "--nanny", directory=tmp_path / "here", **other)
            until(lambda: mentions(caplog.text, "late"), f"a warning about it: {cluster.output('late')}")
        assert cluster.processes["late"].wait(240) == 0
        assert [each["name"] for each in workers_of(client).values()] == ["good"]
        client.close()  # the run has ended, so workers that join later are not checked
        cluster.start_worker("later", directory=tmp_path / "here", **other)
        with _client(cluster) as another:
            another.wait_for_workers(2, timeout=240)


def _client(cluster: Cluster) -> Client:
    return Client(scheduler_file=str(cluster.file), set_as_default=False, timeout=240)


@pytest.mark.process  # runs g++ to get its version
def test_an_incomplete_description_differs(probe: Probe) -> None:
    driver = describe_environment(probe)
    worker = Environment(
        {name: message for name, message in driver.facts.items() if name != "dask"},
        driver.written_file,
    )
    (line,) = compare_environments(probe, driver, worker)
    assert mentions(line, "dask None", driver.facts["dask"])


@pytest.mark.process  # runs g++ to get its version
def test_a_worker_with_a_writable_import_path_differs(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = describe_environment(probe)
    scratch = tmp_path / "dask-scratch-space/worker-1"
    scratch.mkdir(parents=True)
    monkeypatch.syspath_prepend(scratch)
    assert compare_environments(probe, driver, describe_environment(probe)) == []
    assert compare_scheduler(describe_scheduler()) == []
    scratch.chmod(0o777)
    (words,) = compare_environments(probe, driver, describe_environment(probe))
    assert mentions(words, scratch, "0777")
    (words,) = compare_scheduler(describe_scheduler())
    assert str(scratch) in words
    scratch.chmod(0o755)
    scratch.parent.chmod(0o777)
    (words,) = compare_environments(probe, driver, describe_environment(probe))
    assert mentions(words, scratch.parent, "0777")
