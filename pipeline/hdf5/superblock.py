"""An HDF5 file's first bytes, read by hand: whether libhdf5 should look at it at all.

The layout is that of the HDF5 File Format Specification 3.0, section II.A. Other bytes may stand before it, a user
block: 512 of them in a MATLAB file. Four things are refused here that libhdf5 would follow: data that lie in other
files (the family and multi drivers), addresses that count from elsewhere than the superblock, files cut short, and
files that their writer has not closed.
"""

import struct
from typing import NamedTuple, Self

from pipeline.errors import DataError
from pipeline.hdf5.files import read_at
from pipeline.hdf5.plain.metadata import Kind, Metadata, bodies_of

__all__ = ["SIGNATURE", "Superblock", "check_superblock", "signature_at"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SMALLEST_USER_BLOCK = 512
_LONGEST = 128
_ADDRESSES = {width: struct.Struct(form) for width, form in ((2, "<4H"), (4, "<4I"), (8, "<4Q"))}
_OPEN_FLAGS = 0b101  # written to, or written to while others read
_OTHERS = [  # beginnings in small letters
    ((b"version https://git-lfs",), " but a Git LFS pointer to one. Run: git lfs pull"),
    ((b"<!doctype html", b"<html"), " but a web page. Download it again."),
    ((b"matlab 5.0 mat-file",), " but an older MATLAB file. Save it anew: save(..., '-v7.3') in MATLAB."),
    ((b"cdf\1", b"cdf\2", b"cdf\5"), " but netCDF-3, expected netCDF-4. Run: nccopy -k nc4"),
    ((b"\x0e\3\x13\1",), " but HDF4, expected HDF5. Run: h4toh5"),
    ((b"pk\3\4",), " but a ZIP archive, such as .npz and .keras are. Write what it holds as HDF5 (docs/inputs.md)."),
    ((b"\x1f\x8b",), " but compressed as a whole. Run: gunzip"),
    ((b"\x93numpy",), " but NumPy's. Write its rows as HDF5 (docs/inputs.md)."),
]


class Superblock(NamedTuple):
    """What stands in it, the four addresses in their order; versions 0 and 1 have others than 2 and 3."""

    version: int
    width: int  # of an address, in bytes
    base: int  # from which the other addresses count, as it says
    second: int  # of a list of unused bytes, or of an extension
    end: int  # of the data
    fourth: int  # of what names a driver, or of the root group's header

    @classmethod
    def of(cls, head: bytes) -> Self:
        """That of a file from its first bytes; an error where these are too few."""
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
        """The address of what is not there."""
        return int(256**self.width - 1)


def signature_at(descriptor: int, size: int) -> int | None:
    """Where HDF5 begins in an open file: at 0, 512, 1024, 2048 and so on, as libhdf5 searches; None if nowhere."""
    place = 0
    while place + len(SIGNATURE) <= size:
        if read_at(descriptor, place, len(SIGNATURE)) == SIGNATURE:
            return place
        place = 2 * place or _SMALLEST_USER_BLOCK
    return None


def check_superblock(descriptor: int, size: int, where: str) -> int:
    """Where the superblock of an open file lies, from which all addresses count: at 0, or behind a user block.

    Raises
    ------
    DataError
        When it is no HDF5 file that stands by itself; its sentence begins with `where`.
    OSError
    """
    place = 0
    head = read_at(descriptor, 0, min(size, _LONGEST))
    if not head.startswith(SIGNATURE):
        found = signature_at(descriptor, size)
        if found is None:
            raise DataError(f"{where}: not an HDF5 file (first bytes {head[:16]!r}){_other(head)}")
        place = found
        head = read_at(descriptor, place, min(size - place, _LONGEST))
    _check(descriptor, size, place, head, where)
    return place


def _check(descriptor: int, size: int, place: int, head: bytes, where: str) -> None:
    """Refuse what the superblock at `place`, which begins with `head`, says of a file that does not stand by itself."""
    try:
        if head[8] > 3:
            raise DataError(f"{where}: HDF5 superblock version {head[8]}, expected 0 to 3. Rewrite it with h5repack.")
        block = Superblock.of(head)
    except (LookupError, struct.error) as error:
        raise DataError(f"{where}: truncated: {size} bytes, not even a whole header. Copy it again.") from error
    if block.base not in (0, place):  # 0: put behind other bytes later
        raise DataError(f"{where}: addresses count from byte {block.base}, expected {place}. Rewrite it with h5repack.")
    if block.version < 2:
        split = block.fourth != block.nowhere
    else:
        split = block.second != block.nowhere and _names_driver(descriptor, size, place, block.second)
    if split:
        raise DataError(f"{where}: its data lie in several files (an HDF5 driver), expected one. Join them: h5repart.")
    if block.version == 3 and head[11] & _OPEN_FLAGS:
        raise DataError(
            f"{where}: left open by its writer: at work still, or crashed. Wait for it; or copy the file, run "
            "h5clear -s on the copy, and check what it holds."
        )
    end = block.end + place - block.base
    if end > size:
        raise DataError(f"{where}: truncated: {size} bytes, expected {end} bytes as its header says. Copy it again.")


def _other(head: bytes) -> str:
    """What a file is that is not HDF5, and what to do."""
    known = (words for beginnings, words in _OTHERS if head.lstrip().lower().startswith(beginnings))
    return next(known, ", expected one. Check the path.")


def _names_driver(descriptor: int, size: int, place: int, extension: int) -> bool:
    """Whether the superblock's extension, an object header, has a driver message.

    Where that header is not plain the driver is left to HDF5, which opens no second file for it either.
    """
    try:
        return Kind.DRIVER in bodies_of(Metadata(descriptor, size, place), extension)  # whatever else it says
    except OSError:
        raise
    except Exception:
        return False
