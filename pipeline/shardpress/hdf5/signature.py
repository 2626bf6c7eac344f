"""Check the first bytes of a file before the child opens it: it must be HDF5, and closed by its writer."""

from shardpress.base.errors import DataError, printable
from shardpress.hdf5.files import read_at
from shardpress.hdf5.otherformats import HEAD_BYTES, describe

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SMALLEST_USER_BLOCK = 512
_VERSION = 8  # offset of the superblock's version (HDF5 File Format Specification 3.0, II.A)
_FLAGS = 11  # offset of the flags in version 3
_OPEN = 0b101  # open for writing, or for single-writer/multiple-reader (SWMR) access


def signature_at(descriptor: int, size: int) -> int | None:
    """Return the offset of the HDF5 signature (0, 512, 1024, 2048 and so on, as in libhdf5), or None.

    A user block may precede it: MATLAB writes one of 512 bytes.
    """
    offset = 0
    while offset + len(_SIGNATURE) <= size:
        if read_at(descriptor, offset, len(_SIGNATURE)) == _SIGNATURE:
            return offset
        offset = 2 * offset or _SMALLEST_USER_BLOCK
    return None


def check_signature(descriptor: int, size: int, path: str) -> None:
    """Raise `DataError` if the open file at a path is not HDF5, or was not closed, which libhdf5 does not notice."""
    where = f"file={printable(path)}"
    offset = signature_at(descriptor, size)
    if offset is None:
        head = read_at(descriptor, 0, min(size, HEAD_BYTES))
        known = describe(path, head)
        advice = ", expected one. Check the path." if known is None else f" but {known}"
        raise DataError(f"{where}: not an HDF5 file (first bytes {head[:16]!r}){advice}")
    superblock = read_at(descriptor, offset, min(size - offset, _FLAGS + 1))
    if superblock[_VERSION : _VERSION + 1] == b"\3" and superblock[-1] & _OPEN:
        raise DataError(
            f"{where}: the file was not closed by its writer, which is still running or has crashed. Wait for the "
            "writer to finish. If it has crashed, copy the file, run h5clear -s on the copy, and check its content."
        )
