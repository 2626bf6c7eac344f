"""LZF decoder in C (lzf.c), which releases the GIL."""

from typing_extensions import Buffer

__all__ = ["undo_into"]

def undo_into(data: Buffer, out: Buffer) -> int: ...
