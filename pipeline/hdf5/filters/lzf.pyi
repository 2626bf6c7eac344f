"""LZF undone, without Python's lock: lzf.c."""

from typing_extensions import Buffer

__all__ = ["undo_into"]

def undo_into(data: Buffer, out: Buffer) -> int: ...
