"""Files that are not as they were: for tests of what becomes of them."""

from __future__ import annotations

from pathlib import Path

import h5py


def damage(path: str | Path, dataset: str = "X", chunk: int = 0) -> None:
    """Turn over some bits of a chunk's first bytes, not all of them: Fletcher's sum takes 0x0000 for 0xffff."""
    with h5py.File(path) as file:
        offset = file[dataset].id.get_chunk_info(chunk).byte_offset
    with open(path, "r+b") as raw:
        raw.seek(offset)
        start = raw.read(8)
        raw.seek(offset)
        raw.write(bytes(byte ^ 0x55 for byte in start))
