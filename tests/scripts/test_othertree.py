"""Tests of trees of other commits, in a small repository whose set-up only creates an environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.benchmarks import othertree
from scripts.benchmarks.othertree import other_tree

pytestmark = pytest.mark.process

# The set-up counts its calls, and fails if there is a file `broken`.
SETUP = """#!/bin/sh -e
echo called >>calls
"$PYTHON" -m venv --without-pip .venv
test ! -e broken
pwd -P >.venv/.setup-complete
"""


def git(repository: Path, *arguments: str) -> str:
    settings = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", str(repository), *settings, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository with the commits `first` and `second`, which the module is told to use."""
    path = tmp_path / "repository"
    (path / "scripts").mkdir(parents=True)
    git(path, "init", "--quiet")
    script = path / "scripts/setup.sh"
    script.write_text(SETUP)
    script.chmod(0o755)
    for commit in ("first", "second"):
        (path / "which").write_text(commit)
        git(path, "add", ".")
        git(path, "commit", "--quiet", "--message", commit)
        git(path, "tag", commit)
    monkeypatch.setattr(othertree, "ROOT", path)
    return path


def n_calls(root: Path) -> int:
    return (root / "calls").read_text().count("called")


def test_a_tree_has_the_files_of_its_commit_and_our_python(repository: Path, tmp_path: Path) -> None:
    trees = {commit: other_tree(commit, tmp_path / "trees") for commit in ("first", "second")}
    assert {commit: (tree.root / "which").read_text() for commit, tree in trees.items()} == {
        "first": "first",
        "second": "second",
    }
    version = [str(trees["first"].python), "-c", "import sys; print(sys.version)"]
    assert subprocess.run(version, check=True, capture_output=True, text=True).stdout.strip() == sys.version
    assert trees["first"].name == git(repository, "rev-parse", "first")[:8]
    assert git(repository, "status", "--porcelain") == ""


def test_an_incomplete_or_moved_tree_is_set_up_again(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "trees"
    partial = folder / f"{git(repository, 'rev-parse', 'first')[:12]}.partial"
    partial.mkdir(parents=True)
    (partial / "rest").touch()
    root = other_tree("first", folder).root
    assert not (root / "rest").exists()
    other_tree("HEAD~1", folder)
    assert n_calls(root) == 1
    (root / "broken").touch()
    (root / ".venv/.setup-complete").unlink()
    with pytest.raises(subprocess.CalledProcessError):
        other_tree("first", folder)
    (root / "broken").unlink()
    other_tree("first", folder)
    assert n_calls(root) == 3
    folder.rename(tmp_path / "moved")
    assert n_calls(other_tree("first", tmp_path / "moved").root) == 4


def test_an_unknown_commit_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="commit=third"):
        other_tree("third", tmp_path / "trees")
    assert not (tmp_path / "trees").exists()
