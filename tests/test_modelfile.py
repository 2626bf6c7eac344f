"""Tests of untrusted model files: they open no other file, take limited memory, and are refused if damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shardpress.errors import ShardpressError
from shardpress.result import load_model
from tests.support.hostile import opens
from tests.support.hostilemodels import HOSTILE, write_model
from tests.support.interpreters import REPOSITORY

pytestmark = pytest.mark.process


@pytest.mark.parametrize("name", ["external_link", "external_storage", "virtual_dataset"])
def test_no_other_file_is_opened(tmp_path: Path, name: str) -> None:
    make, _ = HOSTILE[name]
    path = make(tmp_path)
    (other,) = set(tmp_path.iterdir()) - {path}
    with opens(other) as counts, pytest.raises(ShardpressError):
        load_model(path)
    assert counts == [0]


LOADER = """
import json, os, sys
from shardpress.errors import ShardpressError
from shardpress.result import load_model

def peak():
    with open("/proc/self/status") as status:  # ru_maxrss would start at the value of the parent process
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

load_model(sys.argv[1])
found = {}
for path in sys.argv[2:]:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # resets the peak
    before = peak()
    try:
        load_model(path)
        code = 0
    except ShardpressError as error:
        code = error.exit_code
    found[path] = (code, (peak() - before) / 1024)
print(json.dumps(found))
"""


def test_hostile_models_take_little_memory(tmp_path: Path) -> None:
    expected = {}
    for name, (make, exit_code) in HOSTILE.items():
        folder = tmp_path / name
        folder.mkdir()
        expected[str(make(folder))] = exit_code
    valid_model = write_model(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", LOADER, valid_model, *expected],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found: dict[str, tuple[int, float]] = json.loads(result.stdout)
    assert {path: code for path, (code, _) in found.items()} == expected
    # The content of a file that has a footer is in memory up to four times.
    sizes = {path: Path(path).stat().st_size / 2**20 for path in found if Path(path).is_file()}
    sizes |= {path: 0 for path in sizes if "huge_file" in path}
    assert {path: peak for path, (_, peak) in found.items() if peak > 8 + 4 * sizes.get(path, 0)} == {}
