"""Tests of other formats: each command that a message suggests runs, and writes a file with the same numbers."""

from __future__ import annotations

import gzip
import importlib.util
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io

from shardpress.base.errors import ShardpressError
from shardpress.shards.open import open_shards
from tests.support.cases import each
from tests.support.helpers import refused, whole, write_shard

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3) / 4
FRAME = pd.DataFrame(ROWS, columns=list("abc"))
LABELS = np.array(["one", "two", "drei", "fünf"])


def _write_npz(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, X=ROWS, y=LABELS)


def _write_matlab(path: Path) -> None:
    scipy.io.savemat(path, {"X": ROWS, "y": LABELS, "settings": {"rate": 1}}, appendmat=False)


def _write_gzip(path: Path) -> None:
    content = Path(write_shard(path.with_name("plain"), ROWS)).read_bytes()
    path.with_name("plain").unlink()
    path.write_bytes(gzip.compress(content))


def _write_zarr(path: Path) -> None:
    import zarr

    if path.name.startswith("array"):
        zarr.create_array(path, data=ROWS, zarr_format=2)
    else:
        zarr.open_group(path, mode="w", zarr_format=3).create_array("X", data=ROWS)


# File names, the name of the format, and the function that writes the file.
CONVERTED: list[tuple[str, str, Callable[[Path], object]]] = [
    ("a.parquet", "Parquet", lambda path: FRAME.assign(y=LABELS).to_parquet(path)),
    ("a.csv", "text", lambda path: FRAME.assign(y='"a, b"').to_csv(path, index=False)),
    ("index.csv", "text", lambda path: FRAME.to_csv(path)),
    ("tabs.h5", "text", lambda path: FRAME.to_csv(path, index=False, sep="\t", header=False)),
    ("a.txt", "text", lambda path: np.savetxt(path, ROWS, header="a b c")),
    ("long.csv", "text", lambda path: pd.concat([FRAME] * 500).to_csv(path, index=False, sep=";")),
    ("a.pkl", "pickle", lambda path: path.write_bytes(pickle.dumps(FRAME))),
    ("a.npy", "NumPy", lambda path: np.save(path, ROWS)),
    ("a.npz", "NumPy", _write_npz),
    ("a.mat", "MATLAB", _write_matlab),
    ("a.h5.gz", "gzip", _write_gzip),
    ("array.zarr", "Zarr", _write_zarr),
    ("group.zarr", "Zarr", _write_zarr),
]


def message_about(path: Path | str) -> str:
    with pytest.raises(ShardpressError) as caught:
        open_shards([str(path)])
    return str(caught.value)


def converted(message: str, folder: Path, in_shell: bool = False) -> Path:
    """Run the command in a message, and return the new file or directory. Without a shell, Python's code runs here."""
    before = set(folder.iterdir())
    command = re.search(r" with `(.*)`\.", message)
    assert command, message
    if command[1].startswith("python -c") and not in_shell:
        exec(shlex.split(command[1])[2], {})
    else:
        script = command[1].replace("python ", f"{sys.executable} ", 1)
        subprocess.run(script, shell=True, check=True, cwd=folder)
    (new,) = set(folder.iterdir()) - before
    return new


@pytest.mark.process
@pytest.mark.slow
@each("name, words, write", CONVERTED)
def test_suggested_command_converts_the_rows(
    name: str, words: str, write: Callable[[Path], object], tmp_path: Path
) -> None:
    if words == "Zarr" and importlib.util.find_spec("zarr") is None:  # not in every environment for tests
        return
    folder = tmp_path / f"it's $HOME of {name}"
    folder.mkdir()
    path = folder / name
    write(path)
    for given in (path, folder / f"*{path.suffix}", folder):
        message = message_about(given)
        assert words in message
    (shard,) = open_shards([str(converted(message, folder))])
    np.testing.assert_array_equal(whole(shard)[:4, :3], ROWS)


@each(
    "content, words",
    [
        (b"", "empty"),
        (b" \n<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"The run of 12 May, with 8 sensors, took 3 h.", "a text file."),
        (b"PK\x03\x04", "python -m zipfile"),
        (bytes(256) + b"\x89HDF\r\n\x1a\n" + bytes(1000), repr(bytes(16))),  # not where a signature may be
        (b"\x1b[31m\n\r\0red", repr(b"\x1b[31m\n\r\0red")),
        (b"1.5," * 2**18, "read_csv"),  # a row that is longer than the bytes that are read
    ],
)
def test_file_without_rows_is_named_for_what_it_is(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(content)
    with refused(65, f"file={path}", words):
        open_shards([str(path)])


@pytest.mark.process
def test_suggested_command_names_only_the_given_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file name cannot add a command or an option."""
    monkeypatch.chdir(tmp_path)
    name = "-rf';touch b;'\"+b+\"`touch b`$(touch b)\nb{new}.npy"
    np.save(tmp_path / name, ROWS)
    assert converted(message_about(name), tmp_path, in_shell=True).suffix == ".h5"
