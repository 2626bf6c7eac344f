"""Check the superblock of an HDF5 file before libhdf5 is allowed to open the file.

Section II.A of the HDF5 File Format Specification 3.0 describes the superblock. A user block may precede it: MATLAB
writes one of 512 bytes. The check refuses four kinds of files that libhdf5 would accept: files with data in other
files (the family and multi drivers), files with addresses that are not relative to the superblock, truncated files,
and files that the writer has not closed.
"""

import struct
from typing import NamedTuple, Self

from shardpress.errors import DataError, printable
from shardpress.hdf5.files import read_at
from shardpress.hdf5.otherformats import HEAD_BYTES, describe

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SMALLEST_USER_BLOCK = 512
_LONGEST = 128  # bytes to read; no superblock is longer
_ADDRESSES = {2: struct.Struct("<4H"), 4: struct.Struct("<4I"), 8: struct.Struct("<4Q")}
_OPEN_FLAGS = 0b101  # open for writing, or for single-writer/multiple-reader (SWMR) access


class _Superblock(NamedTuple):
    """Contents of a superblock. The other addresses are relative to `base`."""

    version: int
    width: int  # bytes of an address
    base: int  # as stored in the file
    second: int  # address of the free-space information (versions 0 and 1) or the superblock extension (2 and 3)
    end: int  # of the data
    fourth: int  # address of the driver information block (versions 0 and 1) or the root group's header (2 and 3)

    @classmethod
    def of(cls, head: bytes) -> Self:
        """Parse a superblock. Raise `LookupError` or `struct.error` if `head` has too few bytes."""
        version = head[8]
        if version < 2:
            width = head[13]
            first = 24 + 4 * version
        else:
            width = head[9]
            first = 12
        return cls(version, width, *_ADDRESSES[width].unpack_from(head, first))

    @property
    def nowhere(self) -> int:
        """Undefined address, which marks an object that does not exist."""
        return int(256**self.width - 1)


def signature_at(descriptor: int, size: int) -> int | None:
    """Return the offset of the HDF5 signature (0, 512, 1024, 2048 and so on, as in libhdf5), or None."""
    offset = 0
    while offset + len(SIGNATURE) <= size:
        if read_at(descriptor, offset, len(SIGNATURE)) == SIGNATURE:
            return offset
        offset = 2 * offset or _SMALLEST_USER_BLOCK
    return None


def check_superblock(descriptor: int, size: int, path: str) -> None:
    """Raise `DataError` if the open file at a path is not HDF5, is truncated or not closed, or uses other files."""
    where = f"file={printable(path)}"
    base = 0
    head = read_at(descriptor, 0, min(size, _LONGEST))
    if not head.startswith(SIGNATURE):
        found = signature_at(descriptor, size)
        if found is None:
            raise DataError(f"{where}: not an HDF5 file{_what_it_is(descriptor, size, path)}")
        base = found
        head = read_at(descriptor, base, min(size - base, _LONGEST))
    _check(size, base, head, where)


def _what_it_is(descriptor: int, size: int, path: str) -> str:
    head = read_at(descriptor, 0, min(size, HEAD_BYTES))
    known = describe(path, head)
    advice = ", expected one. Check the path." if known is None else f" but {known}"
    return f" (first bytes {head[:16]!r}){advice}"


def _check(size: int, base: int, head: bytes, where: str) -> None:
    block = _superblock(head, size, where)
    if block.base not in (0, base):  # 0 if the user block was added after the file was written
        raise DataError(
            f"{where}: addresses are relative to byte {block.base}, expected byte {base}. Rewrite it with h5repack."
        )
    if block.version < 2 and block.fourth != block.nowhere:  # later versions can name a driver only in the metadata
        raise DataError(
            f"{where}: the data are spread over several files (an HDF5 file driver), expected one file. Join the "
            "files with h5repart."
        )
    if block.version == 3 and head[11] & _OPEN_FLAGS:
        raise DataError(
            f"{where}: the file was not closed by its writer, which is still running or has crashed. Wait for the "
            "writer to finish. If it has crashed, copy the file, run h5clear -s on the copy, and check its content."
        )
    end = block.end + base - block.base
    if end > size:
        raise DataError(f"{where}: truncated: {size} bytes, expected {end} bytes from the header. Copy it again.")


def _superblock(head: bytes, size: int, where: str) -> _Superblock:
    try:
        if head[8] > 3:
            raise DataError(f"{where}: HDF5 superblock version {head[8]}, expected 0 to 3. Rewrite it with h5repack.")
        return _Superblock.of(head)
    except (LookupError, struct.error) as error:
        raise DataError(f"{where}: truncated: {size} bytes, too few for a header. Copy the file again.") from error
