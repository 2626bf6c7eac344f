"""Tests of a wrong Python or incompatible packages: programs report it clearly and load nothing."""

import ast
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

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
    assert message.startswith(path.name)
    assert f"({platform.python_version()} " in message
    assert message.endswith(f".venv/bin/python {script}\n")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("version", "is_supported"), [((3, 10), False), ((3, 11), True), ((3, 14), True), ((3, 15), False)]
)
def test_python_versions_that_are_supported(version, is_supported, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (*version, 0, "final", 0))
    assert bool(packages.unsuitable_python()) is not is_supported
    assert ("setup-theano" in packages.complaint()) is not is_supported


def test_free_threaded_builds_are_refused(monkeypatch):
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: int(name == "Py_GIL_DISABLED"))
    assert "free-threaded" in packages.complaint()


def test_missing_theano_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(packages, "_in_checkout", lambda: False)
    monkeypatch.setattr(packages, "find_distributions", dict)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = packages.complaint()
    assert message.endswith(f" {shlex.quote(sys.executable)} -I -m shardpress setup-theano")
    assert "Theano" in message


def test_setup_is_advised_without_a_virtual_environment(tmp_path):
    assert mentions(packages._what_to_type(str(tmp_path)), "make setup", tmp_path)


@pytest.mark.process
def test_unsuitable_packages_end_a_run_before_being_imported(tmp_path):
    (tmp_path / "numpy-2.6.1.dist-info").mkdir()
    (tmp_path / "numpy.py").write_text("raise SystemExit('loaded')")
    code, message = start(sys.executable, "scripts/extract.py", PYTHONPATH=tmp_path)
    assert code == 69
    command = f"{shlex.quote(sys.executable)} -m pip install 'numpy<2.6,>=1.26.4'\n"
    assert mentions(message, "numpy 2.6.1", "<2.6,>=1.26.4")
    assert message.endswith(f": {command}")


def test_this_environment_meets_every_requirement():
    found = packages.find_distributions()
    assert packages.unmet_requirements(found) == []
    all_of_ours = [Requirement(text) for text in importlib.metadata.requires("shardpress") or []]
    needed = [each for each in all_of_ours if each.marker is None or each.marker.evaluate({"extra": ""})]
    nothing = packages.unmet_requirements({"shardpress": found["shardpress"]})
    assert len(nothing) == len(needed) > 10
    assert all(mentions(text, "not installed") for text in nothing)


def test_requirements_are_read_in_every_spelling(tmp_path):
    (tmp_path / "METADATA").write_text(
        """Requires-Dist: one >=1
Requires-Dist: two[array]>=2,<3
Requires-Dist: three (==3.0)
Requires-Dist: four; extra == "test"
Requires-Dist: five (>=5) ; extra == 'test'
"""
    )
    wrong = packages.unmet_requirements({"shardpress": str(tmp_path), "three": "three-2.0.dist-info"})
    expected = [("one", ">=1"), ("two", ">=2,<3"), ("three 2.0", "==3.0")]
    assert all(mentions(line, *facts) for line, facts in zip(wrong, expected, strict=True))


@pytest.mark.parametrize(
    ("version", "ranges", "fits"),
    [
        ("1.26.4", "<2,>=1.26.4", True),
        ("1.26.3", "<2,>=1.26.4", False),
        ("2.0.0rc1", "<2,>=1.26.4", False),
        ("2.0", "<2", False),
        ("3.1", "<3.1", False),
        ("10.1", ">=9.9", True),
        ("3.16", ">=3.16", True),
        ("1.0.5", "==1.0.5", True),
        ("1.0.5.1", "==1.0.5", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version, ranges, fits):
    assert packages._fits(version, ranges) is fits


def test_a_checkout_that_is_not_installed_is_not_checked():
    assert packages.unmet_requirements({}) == []


def test_advised_commands_are_quoted(monkeypatch, tmp_path):
    python = tmp_path / "my files/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["my files/scripts/extract.py"])
    advice = packages._what_to_type(str(tmp_path / "my files"))
    assert advice.endswith(": 'my files/.venv/bin/python' 'my files/scripts/extract.py'")
    monkeypatch.setattr(sys, "executable", str(python))
    needs_one = {"shardpress": packages.find_distributions()["shardpress"]}
    assert f": '{python}' -m pip install " in packages.unmet_requirements(needs_one)[0]


def test_system_packages_and_unreadable_folders_are_harmless(monkeypatch, tmp_path):
    (tmp_path / "PyYAML-6.0.1-py3.11.egg-info").mkdir()
    (tmp_path / "shardpress.egg-info").mkdir()
    listdir = os.listdir

    def refuse(folder):
        if folder == "/refused":
            raise PermissionError(folder)
        return listdir(folder)

    found = packages.find_distributions()
    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr(sys, "path", ["/refused", str(tmp_path)])
    listed = packages.find_distributions()
    assert list(listed) == ["pyyaml"]
    assert packages.unmet_requirements(found | listed) == []


def test_the_first_of_two_versions_on_the_path_is_used(tmp_path, monkeypatch):
    for version in ("1.0", "2.0"):
        (tmp_path / version / f"Some_Thing-{version}.dist-info").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "1.0"), str(tmp_path / "2.0"), str(tmp_path / "nowhere")])
    assert [Path(path).name for path in packages.find_distributions().values()] == ["Some_Thing-1.0.dist-info"]


@pytest.mark.process
@pytest.mark.parametrize("n_kib", [64_000, 320_000])
def test_too_little_address_space_is_reported_at_the_start(n_kib):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (n_kib * 1024, n_kib * 1024))

    command = [sys.executable, "scripts/extract.py"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert result.returncode == 71
    assert mentions(result.stderr, n_kib, "ulimit -v", 368640)
