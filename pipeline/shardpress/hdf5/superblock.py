"""Check the superblock of an HDF5 file before libhdf5 is allowed to open the file.

Section II.A of the HDF5 File Format Specification 3.0 describes the superblock. A user block may precede it: MATLAB
writes one of 512 bytes. The check refuses four kinds of files that libhdf5 would accept: files with data in other
files (the family and multi drivers), files with addresses that are not relative to the superblock, truncated files,
and files that the writer has not closed.
"""

import struct
from typing import NamedTuple, Self

from shardpress.errors import DataError
from shardpress.hdf5.files import read_at
from shardpress.hdf5.plain.metadata import Kind, Metadata, bodies_of

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SMALLEST_USER_BLOCK = 512
_LONGEST = 128  # bytes to read; no superblock is longer
_ADDRESSES = {2: struct.Struct("<4H"), 4: struct.Struct("<4I"), 8: struct.Struct("<4Q")}
_OPEN_FLAGS = 0b101  # open for writing, or for single-writer/multiple-reader (SWMR) access
_OTHER_FORMATS = [  # first bytes in lower case, and the end of the message
    ((b"version https://git-lfs",), " but a Git LFS pointer to one. Run: git lfs pull"),
    ((b"<!doctype html", b"<html"), " but a web page. Download it again."),
    ((b"matlab 5.0 mat-file",), " but a MATLAB file older than 7.3. Save it again in MATLAB with save(..., '-v7.3')."),
    ((b"cdf\1", b"cdf\2", b"cdf\5"), " but a netCDF-3 file, expected netCDF-4. Run: nccopy -k nc4"),
    ((b"\x0e\3\x13\1",), " but an HDF4 file, expected HDF5. Run: h4toh5"),
    ((b"pk\3\4",), " but a ZIP archive (.npz, .keras, ...). Write its content as HDF5 (docs/recipes.md)."),
    ((b"\x1f\x8b",), " but a gzip-compressed file. Run: gunzip"),
    ((b"\x93numpy",), " but a NumPy file (.npy). Write its rows as HDF5 (docs/recipes.md)."),
]


class Superblock(NamedTuple):
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


def check_superblock(descriptor: int, size: int, where: str) -> int:
    """Check the superblock of an open file, and return its offset: 0, or the end of a user block.

    Raise `DataError` if the file is not HDF5, is truncated or not closed, or depends on other files. Addresses in the
    file are relative to the offset.
    """
    base = 0
    head = read_at(descriptor, 0, min(size, _LONGEST))
    if not head.startswith(SIGNATURE):
        found = signature_at(descriptor, size)
        if found is None:
            raise DataError(f"{where}: not an HDF5 file (first bytes {head[:16]!r}){_advice_on_format(head)}")
        base = found
        head = read_at(descriptor, base, min(size - base, _LONGEST))
    _check(descriptor, size, base, head, where)
    return base


def _check(descriptor: int, size: int, base: int, head: bytes, where: str) -> None:
    block = _superblock(head, size, where)
    if block.base not in (0, base):  # 0 if the user block was added after the file was written
        raise DataError(
            f"{where}: addresses are relative to byte {block.base}, expected byte {base}. Rewrite it with h5repack."
        )
    if _has_driver(descriptor, size, base, block):
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


def _superblock(head: bytes, size: int, where: str) -> Superblock:
    try:
        if head[8] > 3:
            raise DataError(f"{where}: HDF5 superblock version {head[8]}, expected 0 to 3. Rewrite it with h5repack.")
        return Superblock.of(head)
    except (LookupError, struct.error) as error:
        raise DataError(f"{where}: truncated: {size} bytes, too few for a header. Copy the file again.") from error


def _advice_on_format(head: bytes) -> str:
    start = head.lstrip().lower()
    for beginnings, words in _OTHER_FORMATS:
        if start.startswith(beginnings):
            return words
    return ", expected one. Check the path."


def _has_driver(descriptor: int, size: int, base: int, block: Superblock) -> bool:
    """Return whether a superblock names a file driver, which stores the data in several files."""
    if block.version < 2:
        return block.fourth != block.nowhere
    return block.second != block.nowhere and _names_driver(descriptor, size, base, block.second)


def _names_driver(descriptor: int, size: int, base: int, extension: int) -> bool:
    """Return whether the superblock extension, an object header, has a driver message.

    Return False if the header is not plain. libhdf5 then reads the header itself, and opens no second file either.
    """
    try:
        return Kind.DRIVER in bodies_of(Metadata(descriptor, size, base), extension)  # other messages do not matter
    except OSError:
        raise
    except Exception:
        return False
