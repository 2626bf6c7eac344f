"""LZF decoder that releases the GIL: lzf.c."""

from typing_extensions import Buffer

__all__ = ["undo_into"]

def undo_into(data: Buffer, out: Buffer) -> int: ...
