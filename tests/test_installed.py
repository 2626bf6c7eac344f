"""Tests of a wrong Python or incompatible packages: programs report it clearly and load nothing."""

import ast
import importlib.metadata
import importlib.util
import resource
import shlex
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from shardpress.doctor import packages
from tests.support.interpreters import REPOSITORY, environment
from tests.support.logged import mentions

SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))
# The checks of pages and of missing packages work with any Python.
OTHERS = ("report_check.py", "doctor.py", "sizes.py")
STARTED = [path for path in SCRIPTS if "__main__" in path.read_text() and path.name not in OTHERS]
OLDEST = (3, 6)


def start(*command, **variables):
    result = subprocess.run(command, cwd=REPOSITORY, env=environment(**variables), capture_output=True, text=True)
    return result.returncode, result.stderr


@pytest.mark.parametrize(
    "path",
    [
        *STARTED,
        *(
            REPOSITORY / name
            for name in (
                "pipeline/shardpress/installed.py",
                "pipeline/shardpress/doctor/packages.py",
                "scripts/doctor.py",
            )
        ),
    ],
    ids=lambda path: path.name,
)
def test_old_pythons_can_parse_the_programs(path):
    ast.parse(path.read_text(), feature_version=OLDEST)
    assert "from __future__" not in path.read_text()


@pytest.mark.process
@pytest.mark.parametrize("path", STARTED, ids=lambda path: path.name)
def test_the_error_without_packages_names_the_right_python(path):
    script = str(path.relative_to(REPOSITORY))
    code, message = start(sys.executable, "-S", script, PYTHONPATH=None)
    assert code == 69
    assert sys.executable in message
    assert message.endswith(f".venv/bin/python {script}\n")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("version", "is_supported"), [((3, 10), False), ((3, 11), True), ((3, 14), True), ((3, 15), False)]
)
def test_python_versions_that_are_supported(version, is_supported, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    assert bool(packages.unsuitable_python()) is not is_supported
    assert ("setup-theano" in packages.complaint()) is not is_supported


def test_missing_theano_is_reported_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert mentions(packages.complaint(), "Theano", "make setup", REPOSITORY)
    message = packages.missing_theano(str(tmp_path))
    assert message.endswith(f" {shlex.quote(sys.executable)} -I -m shardpress setup-theano")
    assert "Theano" in message


@pytest.mark.process
def test_unsuitable_packages_end_a_run_before_being_imported(tmp_path):
    (tmp_path / "numpy-2.6.1.dist-info").mkdir()
    (tmp_path / "numpy-2.6.1.dist-info/METADATA").write_text("Name: numpy\nVersion: 2.6.1\n")
    (tmp_path / "numpy.py").write_text("raise SystemExit('loaded')")
    code, message = start(sys.executable, "scripts/extract.py", PYTHONPATH=tmp_path)
    assert code == 69
    command = f"{shlex.quote(sys.executable)} -m pip install 'numpy<2.6,>=1.26.4'\n"
    assert mentions(message, "numpy 2.6.1", "<2.6,>=1.26.4")
    assert message.endswith(f": {command}")


def test_this_environment_meets_every_requirement(monkeypatch):
    assert packages.unmet_requirements() == []
    all_of_ours = [Requirement(text) for text in importlib.metadata.requires("shardpress") or []]
    needed = [each for each in all_of_ours if each.marker is None or each.marker.evaluate({"extra": ""})]
    monkeypatch.setattr(packages, "version_of", lambda name: "")
    messages = packages.unmet_requirements()
    assert len(messages) == len(needed) > 10
    assert all(mentions(text, "not installed") for text in messages)


def test_requirements_are_read_in_every_spelling(tmp_path, monkeypatch):
    (tmp_path / "shardpress-0.dist-info").mkdir()
    (tmp_path / "shardpress-0.dist-info/METADATA").write_text(
        """Name: shardpress
Requires-Dist: One_x >=1
Requires-Dist: two[array]>=2,<3
Requires-Dist: three (==3.0)
Requires-Dist: four; extra == "test"
Requires-Dist: five (>=5) ; extra == 'test'
"""
    )
    (tmp_path / "three-2.0.dist-info").mkdir()
    (tmp_path / "three-2.0.dist-info/METADATA").write_text("Name: three\nVersion: 2.0\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    expected = [("One_x", ">=1"), ("two", ">=2,<3"), ("three 2.0", "==3.0")]
    assert all(mentions(line, *facts) for line, facts in zip(packages.unmet_requirements(), expected, strict=True))


@pytest.mark.parametrize(
    ("version", "ranges", "fits"),
    [
        ("1.26.4", "<2,>=1.26.4", True),
        ("1.26.3", "<2,>=1.26.4", False),
        ("2.0.0rc1", "<2,>=1.26.4", False),
        ("3.1", "<3.1", False),
        ("10.1", ">=9.9", True),
        ("1.0.5.1", "==1.0.5", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version, ranges, fits):
    assert packages._fits(version, ranges) is fits


def test_advised_commands_are_quoted(monkeypatch, tmp_path):
    checkout = tmp_path / "my files"
    (checkout / "scripts").mkdir(parents=True)
    (checkout / "scripts/setup.sh").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["my files/scripts/extract.py"])
    advice = packages.missing_theano(str(checkout))
    assert advice.endswith(": 'my files/.venv/bin/python' 'my files/scripts/extract.py'")
    monkeypatch.setattr(sys, "executable", str(checkout / "python"))
    monkeypatch.setattr(packages, "version_of", lambda name: "")
    assert f": '{checkout / 'python'}' -m pip install " in packages.unmet_requirements()[0]


@pytest.mark.process
@pytest.mark.parametrize("n_kib", [64_000, 320_000])
def test_too_little_address_space_is_reported_at_the_start(n_kib):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (n_kib * 1024, n_kib * 1024))

    command = [sys.executable, "scripts/extract.py"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert result.returncode == 71
    assert mentions(result.stderr, n_kib, "ulimit -v", 368640)
