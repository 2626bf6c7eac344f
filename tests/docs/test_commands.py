"""Tests of the commands on the pages: they succeed on small files, or use existing flags if they cannot run here.

`test_readme.py`, and the tests of the pages with blocks that are marked as ``sh``, run these in order.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from distributed.cli import dask_scheduler, dask_worker

from shardpress.commands.registry import main
from tests.support.cases import case
from tests.support.helpers import write_shard
from tests.support.interpreters import REPOSITORY
from tests.support.programs import call, words_of

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


def can_run_here(command: str) -> bool:
    """Return False for a command that installs software, checks this machine, or needs a cluster or cards."""
    name, *arguments = words_of(command)
    needs_others = {"--scheduler", "--devices", "--workers"} & set(arguments)
    return name not in ("doctor", "setup-gpu", "setup-theano") and not needs_others


ALL_COMMANDS = [(page.name, command) for page in PAGES for command in commands_of(lines_of(page))]
RUNNABLE = {
    command: page.name
    for page in PAGES
    for command in commands_of(indented_lines(page))
    if page.name != "README.md" and can_run_here(command)
}


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


@pytest.mark.process
@pytest.mark.compiler
@pytest.mark.slow
def test_commands_succeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command finds inputs, two finished runs in ``features`` and ``features-new``, and a file of settings."""
    monkeypatch.setenv("SHARDPRESS_EPOCHS", "2")
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    write_inputs(prepared)
    monkeypatch.chdir(prepared)
    new_file = prepared / "incoming/2.h5"
    new_file.rename(prepared / "2.h5")
    call("shardpress run --quiet --input incoming/ --output features")
    call("shardpress run --quiet --input shards/ --output features-new --seed 1")
    call("shardpress run --print-config > settings.yaml")
    (prepared / "2.h5").rename(new_file)
    for number, (command, page) in enumerate(RUNNABLE.items()):
        folder = tmp_path / str(number)
        shutil.copytree(prepared, folder)
        monkeypatch.chdir(folder)
        name, *arguments = words_of(command)
        uses_results = {"--append", "--retrain", "--model"} & set(arguments)
        if name in ("run", "plan") and not uses_results:
            shutil.rmtree("features")
        with case(page, command):
            call(command)


def flags_on(capsys: pytest.CaptureFixture[str], *arguments: str) -> set[str]:
    """Return the flags on a help page."""
    with pytest.raises(SystemExit):
        main([*arguments])
    return set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_flags_of_all_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    of_runs = flags_on(capsys, "run", "--help-all")
    unknown = []
    for page, command in ALL_COMMANDS:
        name, *arguments = words_of(command)
        flags = flags_on(capsys, name, "--help")
        if name in ("run", "plan", "inspect"):
            flags |= of_runs
        unknown += [(page, name, word) for word in arguments if word.startswith("--") and word not in flags]
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


def test_files_and_tests_that_pages_name_exist() -> None:
    text = "".join(page.read_text() for page in PAGES)
    files = set(re.findall(r"`((?:scripts|pipeline|kernels|tests)/[\w./]*)`", text))
    of_readers = [name for name in files if "NAME" in name or "test_first" in name]
    assert [name for name in files.difference(of_readers) if not (REPOSITORY / name).exists()] == []
    page = REPOSITORY / "docs/reliability.md"
    tests = re.findall(r"`(\w+/test_\w+\.py)` `(test_\w+)`", page.read_text())
    assert len(tests) > 9
    assert [name for file, name in tests if f"def {name}(" not in (REPOSITORY / "tests" / file).read_text()] == []
