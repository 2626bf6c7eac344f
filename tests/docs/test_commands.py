"""Tests of the commands on the pages: they succeed on small files, or use existing flags if they cannot run here.

`test_readme.py`, and the tests of the pages with blocks that are marked as ``sh``, run these in order.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from distributed.cli import dask_scheduler, dask_worker

from shardpress.commands.table import main
from shardpress.settings.flags import _parser_of_settings
from tests.support.cases import case
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY, environment

PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md")])
N_ROWS = 300
N_COLUMNS = 12


def indented_lines(page: Path) -> list[str]:
    """Return the lines of the indented blocks on a page."""
    outside = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    return re.findall(r"^    (\S.*)$", outside, re.M)


def lines_of(page: Path) -> list[str]:
    """Return the lines of the shell programs on a page: indented blocks, and blocks that are marked as ``sh``."""
    programs = re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)
    return "\n".join(programs).replace("\\\n", " ").splitlines() + indented_lines(page)


def commands_of(lines: list[str]) -> list[str]:
    """Return the calls of shardpress, without the programs before and after them."""
    found = [re.search(r"(?:THEANO_FLAGS=\S+ )?\bshardpress [a-z].*", line) for line in lines]
    calls = [match[0] for match in found if match]
    return [re.split(r" \| | & | {2,}", call)[0] for call in calls]


def words_of(command: str) -> list[str]:
    """Return the name of the command of shardpress, and its arguments."""
    words = shlex.split(command)
    return words[words.index("shardpress") + 1 :]


def can_run_here(command: str) -> bool:
    """Return False for a command that installs software, checks this machine, or needs a cluster or cards."""
    name, *arguments = words_of(command)
    needs_others = {"--scheduler", "--devices"} & set(arguments)
    return name not in ("doctor", "setup-gpu", "setup-theano") and not needs_others


ALL_COMMANDS = [(page.name, command) for page in PAGES for command in commands_of(lines_of(page))]
RUNNABLE = {
    command: page.name
    for page in PAGES
    for command in commands_of(indented_lines(page))
    if page.name != "README.md" and can_run_here(command)
}


def start(command: str, folder: Path) -> None:
    """Run a command in a folder. It must succeed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = environment(PATH=path, SHARDPRESS_EPOCHS="2")
    result = subprocess.run(["sh", "-c", command], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, command + result.stdout + result.stderr


def write_inputs(folder: Path) -> None:
    """Write the input files that the pages mention."""
    rng = np.random.default_rng(0)
    y = np.arange(N_ROWS) % 2
    split = np.where(np.arange(N_ROWS) % 3 > 0, b"train", b"test")
    for name in ("shards", "incoming", "data"):
        (folder / name).mkdir()
    for number in range(3):
        rows = rng.normal(size=(N_ROWS, N_COLUMNS)) + 2 * y[:, None]
        write_shard(folder / f"incoming/{number}.h5", rows, extras={"y": y, "split": split})
    for number in range(2):
        shutil.copy2(folder / f"incoming/{number}.h5", folder / f"shards/{number}.h5")
    shutil.copy2(folder / "incoming/0.h5", folder / "data/0.h5")
    with h5py.File(folder / "cells.h5ad", "w") as file:
        file["X"] = rng.poisson(3, (N_ROWS, N_COLUMNS)).astype("f4")
        file["obs/cell_type"] = [f"type {i % 3}" for i in range(N_ROWS)]
        file["obs/donor"] = [f"d{i % 9}" for i in range(N_ROWS)]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write inputs, two finished runs in ``features`` and ``features-new``, and a file of settings."""
    folder = tmp_path_factory.mktemp("prepared")
    write_inputs(folder)
    new_file = folder / "incoming/2.h5"
    new_file.rename(folder / "2.h5")
    start("shardpress run --quiet --input incoming/ --output features", folder)
    start("shardpress run --quiet --input shards/ --output features-new --seed 1", folder)
    start("shardpress run --print-config > settings.yaml", folder)
    (folder / "2.h5").rename(new_file)
    return folder


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize(("command", "page"), RUNNABLE.items())
def test_command_succeeds(prepared: Path, tmp_path: Path, command: str, page: str) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(prepared, folder, symlinks=True)
    name, *arguments = words_of(command)
    uses_results = {"--append", "--retrain", "--model"} & set(arguments)
    if name in ("run", "plan") and not uses_results:
        shutil.rmtree(folder / "features")
    with case(page):
        start(command, folder)


def flags_of(name: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Return the flags of a command of shardpress: those on its help page, and the settings that it accepts."""
    with pytest.raises(SystemExit):
        main([name, "--help"])
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    if name in ("run", "plan", "inspect"):
        flags |= set(_parser_of_settings("")._option_string_actions)
    return flags


def test_flags_of_all_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    unknown = []
    for page, command in ALL_COMMANDS:
        name, *arguments = words_of(command)
        used = {word for word in arguments if word.startswith("--")}
        unknown += [(page, name, flag) for flag in used - flags_of(name, capsys)]
    assert unknown == []


@pytest.mark.parametrize("program", [dask_scheduler, dask_worker])
def test_flags_of_dask_exist_and_hide_its_page(program: Any) -> None:
    """Each program of Dask opens an HTTP port on every interface by default."""
    name = program.__name__.rpartition(".")[2].replace("_", " ")
    lines = [line for page in PAGES for line in lines_of(page) if name in line and "--" in line]
    options = {option for each in program.main.params for option in each.opts}
    assert len(lines) >= 2
    for line in lines:
        with case(line):
            assert set(re.findall(r" (--[\w-]+)", line.partition(name)[2])) <= options
            assert "--dashboard-address" in line


def test_python_of_all_pages_compiles() -> None:
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S):
            with case(page.name):
                compile(block, page.name, "exec")


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    named = {match[1] for page in PAGES for line in lines_of(page) for match in re.finditer(r"\bmake ([a-z-]+)", line)}
    assert len(named) >= 8
    assert named <= targets


def test_links_between_pages_exist() -> None:
    broken = []
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
            path = (page.parent / target).resolve() if target else page
            if "://" in target:
                continue
            if not path.exists() or (anchor and anchor not in anchors_of(path)):
                broken.append((page.name, target, anchor))
    assert broken == []


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
