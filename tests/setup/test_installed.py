"""Tests of a wrong Python or incompatible packages: programs report it clearly and load nothing."""

import ast
import re
import resource
import shlex
import subprocess
import sys

import pytest

from shardpress.base import packages
from tests.support.cases import case
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


def test_old_pythons_can_parse_the_programs():
    names = ("pipeline/shardpress/setup/installed.py", "pipeline/shardpress/base/packages.py", "scripts/doctor.py")
    for path in [*STARTED, *(REPOSITORY / name for name in names)]:
        with case(path.name):
            ast.parse(path.read_text(), feature_version=OLDEST)
            assert "from __future__" not in path.read_text()


@pytest.mark.process
def test_missing_or_unsuitable_packages_end_a_run_before_being_imported(tmp_path):
    code, message = start(sys.executable, "-S", "scripts/extract.py", PYTHONPATH=None)
    assert code == 69
    assert message.endswith(".venv/bin/python scripts/extract.py\n")
    write_package(tmp_path, "numpy", "2.6.1")
    (tmp_path / "numpy.py").write_text("raise SystemExit('loaded')")
    code, message = start(sys.executable, "scripts/extract.py", PYTHONPATH=tmp_path)
    assert code == 69
    command = f"{shlex.quote(sys.executable)} -m pip install 'numpy<2.6,>=1.26.4'\n"
    assert mentions(message, "numpy 2.6.1", "<2.6,>=1.26.4")
    assert message.endswith(f": {command}")


def write_package(folder, name, version, *requirements):
    """Write the metadata of an installed package."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {each}" for each in requirements)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("version", "requirement", "fits"),
    [
        ("1.26.3", "one[array]<2,>=1.26.4", False),
        ("2.0.0rc1", "one<2,>=1.26.4", False),
        ("3.1", "one (<3.1)", False),
        ("10.1", "one >=9.9", True),
        ("1.0", 'one (>=5) ; extra == "test"', True),
        ("1.0", "Two_x >=1", False),
    ],
)
def test_versions_are_compared_by_their_numbers(tmp_path, monkeypatch, version, requirement, fits):
    write_package(tmp_path, "one", version)
    write_package(tmp_path, "shardpress", "0", requirement)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    messages = packages.unmet_requirements()
    assert len(messages) == (not fits)
    assert all(mentions(each, re.match(r"\w+", requirement)[0], "expected") for each in messages)


@pytest.mark.process
def test_too_little_address_space_is_reported_at_the_start():
    n_kib = 64_000

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (n_kib * 1024, n_kib * 1024))

    command = [sys.executable, "scripts/extract.py"]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, preexec_fn=limit)
    assert result.returncode == 71
    assert mentions(result.stderr, n_kib, "ulimit -v", 368640)
