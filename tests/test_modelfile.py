"""Tests of untrusted model files: they open no other file, take limited memory, and are refused if damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from shardpress import modelfile
from shardpress.errors import DataError, OtherVersion, ShardpressError
from shardpress.formats import digest, seal
from shardpress.model import load_model
from shardpress.output.records import OUTPUT
from tests.support.helpers import refused
from tests.support.hostile import opens
from tests.support.hostilemodels import HOSTILE, model_of, write_model
from tests.support.interpreters import REPOSITORY

ARRAYS = ["W_1", "W_2", "b_hidden_1", "b_hidden_2", "b_output_1", "b_output_2", "gain", "minimum", "maximum", "fill"]


# -- hostile files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused(tmp_path: Path, name: str) -> None:
    make, exit_code = HOSTILE[name]
    path = make(tmp_path)
    with refused(exit_code, f"{path}"):
        load_model(path)


@pytest.mark.parametrize("name", ["external_link", "external_storage", "virtual_dataset"])
def test_no_other_file_is_opened(tmp_path: Path, name: str) -> None:
    make, _ = HOSTILE[name]
    path = make(tmp_path)
    (other,) = set(tmp_path.iterdir()) - {path}
    with opens(other) as counts, pytest.raises(ShardpressError):
        load_model(path)
    assert counts == [0]


LOADER = """
import json, sys
from shardpress.errors import ShardpressError
from shardpress.model import load_model

def peak():
    with open("/proc/self/status") as status:  # ru_maxrss would start at the value of the parent process
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

load_model(sys.argv[1])
found = {}
for path in sys.argv[2:]:
    before = peak()
    try:
        load_model(path)
        code = 0
    except ShardpressError as error:
        code = error.exit_code
    found[path] = (code, (peak() - before) / 1024)
print(json.dumps(found))
"""


@pytest.mark.process
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
    # The largest description has 16 MiB, and is in memory as bytes and as text. Larger descriptions are not read.
    too_much = {path: n_mebibytes for path, (_, n_mebibytes) in found.items() if n_mebibytes > 64}
    assert too_much == {}


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    content = path.read_bytes()
    for sixteenths in range(16):
        path.write_bytes(content[: len(content) * sixteenths // 16])
        with refused(65, str(path)):
            load_model(path)


# -- damage --------------------------------------------------------------------------------------------------------


def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_flipped_bit_in_an_array_is_refused(tmp_path: Path, name: str) -> None:
    path = write_model(tmp_path)
    with h5py.File(path) as file:
        offset = file[name].id.get_offset()
        size = file[name].id.get_storage_size()
    rng = np.random.default_rng(0)
    for _ in range(8):
        place = offset + int(rng.integers(size))
        bit = int(rng.integers(8))
        flip(path, place, bit)
        with refused(65, str(path)):
            load_model(path)
        flip(path, place, bit)
    assert load_model(path).fingerprint == model_of().fingerprint


def test_changed_bytes_are_refused_or_change_no_feature(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    content = path.read_bytes()
    expected = model_of()
    rng = np.random.default_rng(1)
    for _ in range(1000):
        changed = bytearray(content)
        for place in rng.integers(len(content), size=int(rng.integers(1, 4))):
            changed[place] = int(rng.integers(256))
        path.write_bytes(changed)
        try:
            found = load_model(path)
        except (DataError, OtherVersion):
            continue
        assert found.fingerprint == expected.fingerprint
        assert found.network == expected.network


# -- the manifest --------------------------------------------------------------------------------------------------


def write_output(directory: Path, name: str = "model.h5", seed: int = 0) -> Path:
    """Write a model and a manifest that lists it; return the path of the model's file."""
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_model(path.parent, path.name, seed)
    write_manifest(directory, name)
    return path


def write_manifest(directory: Path, name: str) -> None:
    content = (directory / name).read_bytes()
    line = {"file": name, "n_bytes": len(content), "blake3": digest([content])}
    (directory / "manifest.json").write_bytes(seal(OUTPUT, {"parts": [], "files": [line]}))


def change_about(path: Path) -> None:
    """Flip a bit that the fingerprint in the file does not cover."""
    flip(path, path.read_bytes().index(b"training"))


@pytest.fixture(params=["model.h5", f"published/{0x123:032x}/model.h5"], ids=["in place", "linked"])
def output(request: Any, tmp_path: Path) -> Path:
    """Return an output directory, in which ``model.h5`` is a file or a link."""
    directory = tmp_path / "features"
    path = write_output(directory, request.param)
    if path.parent != directory:
        (directory / "model.h5").symlink_to(request.param)
    return directory


def test_a_model_is_compared_with_the_manifest(output: Path) -> None:
    for path in (output, output / "model.h5"):
        assert load_model(path).fingerprint == model_of().fingerprint
    change_about(output / "model.h5")
    for path in (output, output / "model.h5"):
        with refused(65, str(path), "manifest.json"):
            load_model(path)


def test_a_copied_model_needs_no_manifest(output: Path, tmp_path: Path) -> None:
    change_about(output / "model.h5")
    copy = tmp_path / "model.h5"
    copy.write_bytes((output / "model.h5").read_bytes())
    assert load_model(copy).fingerprint == model_of().fingerprint


def test_the_model_of_a_directory_is_the_listed_one(tmp_path: Path) -> None:
    write_output(tmp_path, f"published/{0:032x}/model.h5")
    write_model(tmp_path, seed=1)
    assert load_model(tmp_path).fingerprint == model_of().fingerprint
    with refused(65, "manifest.json"):
        load_model(tmp_path / "model.h5")


def test_a_damaged_manifest_is_refused(output: Path) -> None:
    flip(output / "manifest.json", 60)
    for path in (output, output / "model.h5"):
        with refused(65, "manifest.json"):
            load_model(path)


def test_a_manifest_of_another_program_is_ignored(tmp_path: Path) -> None:
    path = write_model(tmp_path)
    (tmp_path / "manifest.json").write_text('{"name": "of another program"}')
    assert load_model(path).fingerprint == model_of().fingerprint


@pytest.mark.parametrize(
    ("old", "new"), [("model.h5", "model.h5"), (f"published/{0:032x}/model.h5", f"published/{1:032x}/model.h5")]
)
def test_a_run_that_finishes_while_loading_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    # The manifest is replaced after it was read and before the model is read.
    path = write_output(tmp_path, old)
    read_manifest = modelfile.read_manifest
    n_reads = []

    def read_and_finish(directory: Path) -> dict[str, Any]:
        manifest = read_manifest(directory)
        if not n_reads:
            path.unlink()
            write_output(tmp_path, new, seed=1)
        n_reads.append(directory)
        return manifest

    monkeypatch.setattr(modelfile, "read_manifest", read_and_finish)
    assert load_model(tmp_path).fingerprint == model_of(seed=1).fingerprint
    assert len(n_reads) == 2
