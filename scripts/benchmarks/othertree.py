"""Work trees of other commits, each with its own environment, for comparisons with this tree.

    .venv/bin/python -m scripts.benchmarks.othertree 21e2429c    create the tree, and print its directory

Trees are kept in .trees/, so a second comparison with the same commit starts at once. `make clean` removes them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".trees"


@dataclass(frozen=True)
class Tree:
    """A checkout with an environment in ``.venv``.

    Attributes
    ----------
    root : Path
    name : str
        "this tree", or the first digits of the commit.
    """

    root: Path
    name: str

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.root / ".venv/bin/python"

    @property
    def extract(self) -> list[str]:
        """The command that extracts features; the flags follow."""
        return [str(self.python), str(self.root / "scripts/extract.py")]

    @property
    def command(self) -> Path:
        """The program `shardpress`."""
        return self.root / ".venv/bin/shardpress"


THIS_TREE = Tree(ROOT, "this tree")


def other_tree(commit: str, folder: Path = FOLDER) -> Tree:
    """Return the tree of a commit of this repository. If necessary, unpack it and run its set-up.

    The environment is created by the commit's own ``scripts/setup.sh`` with the interpreter of this process. The output
    of the set-up goes to standard error.

    Raises
    ------
    ValueError
        If there is no such commit.
    subprocess.CalledProcessError
        If the set-up fails. The next call repeats it.
    """
    digest = _digest_of(commit)
    tree = Tree((folder / digest[:12]).resolve(), digest[:8])
    if not tree.root.exists():
        _unpack(digest, tree.root)
    if not _is_set_up(tree):
        _set_up(tree)
    return tree


def environment(**variables: str) -> dict[str, str]:
    """Return the environment for processes of any tree: without a search path that could name this one."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, **variables}


def _digest_of(commit: str) -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if result.returncode != 0:
        raise ValueError(f"commit={commit}: does not exist in {ROOT}. Fetch it first.")
    return result.stdout.strip()


def _unpack(digest: str, root: Path) -> None:
    """Write the files of a commit to a new directory. A directory that exists is complete."""
    # `git worktree` would leave an entry in .git when `make clean` removes the directory.
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    archive = partial / "tree.tar"
    subprocess.run(["git", "-C", str(ROOT), "archive", f"--output={archive}", digest], check=True)
    subprocess.run(["tar", "-x", "-f", str(archive), "-C", str(partial)], check=True)
    archive.unlink()
    partial.rename(root)


def _is_set_up(tree: Tree) -> bool:
    """Return whether the set-up has finished in this directory, with the interpreter of this process."""
    stamp = tree.root / ".venv/.setup-complete"
    if not stamp.exists() or stamp.read_text().strip() != str(tree.root):
        return False
    command = [str(tree.python), "-c", "import sys; print(sys._base_executable, sys.version)"]
    result = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=False)
    return result.stdout.strip() == f"{_interpreter()} {sys.version}"


def _set_up(tree: Tree) -> None:
    print(f"setting up {tree.name} in {tree.root} (a few minutes the first time)", file=sys.stderr, flush=True)
    env = environment(PYTHON=_interpreter())
    subprocess.run(["scripts/setup.sh"], cwd=tree.root, env=env, stdout=2, check=True)  # 2 is standard error


def _interpreter() -> str:
    """Return the interpreter that the environment of this process was created with."""
    return str(getattr(sys, "_base_executable", sys.executable))


if __name__ == "__main__":
    print(other_tree(sys.argv[1]).root)
