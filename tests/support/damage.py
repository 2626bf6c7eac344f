"""Damage files, for tests of the handling of damaged files."""

from __future__ import annotations

from pathlib import Path

import h5py


def damage(path: str | Path, dataset: str = "X", chunk: int = 0) -> None:
    """Flip some bits, but not all, in the first bytes of a chunk: Fletcher's sum treats 0x0000 and 0xffff alike."""
    with h5py.File(path) as file:
        offset = file[dataset].id.get_chunk_info(chunk).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        start = raw.read(8)
        raw.seek(offset)
        raw.write(bytes(byte ^ 0x55 for byte in start))
