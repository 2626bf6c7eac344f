"""HDF5 files of ours that end with a footer: a name, and the length and the BLAKE3 of everything before it.

The footer comes after HDF5's end, where HDF5 ignores it. A file is read once, its digest is compared, and its bytes are
opened in memory. libhdf5 therefore sees no damaged byte.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from shardpress.base.errors import DataError, NoInput, ReadFailed, ShardpressError, printable
from shardpress.base.formats import check_version, digest
from shardpress.hdf5.child.ask import Refusal, ask
from shardpress.hdf5.files import opened, read_at, translated_error, with_retries

FORMAT = "shardpress-output/7"
"""Name and version of the format of an output directory and its files."""
GROUP = "shardpress"
"""Name of the group with everything except the rows."""

_FOOTER = struct.Struct("<24sQ32s")  # name, number of bytes before the footer, and their BLAKE3
_NAME = b"shardpress-output/"  # how all names begin
_FORGED = "It is not a file that shardpress wrote, or it is damaged or forged: do not use it."
_RESTORE = "Restore it from a copy, or repeat the run that made it with --restart."
_QUOTED = 500  # characters of an error that a message quotes


# -- writing -------------------------------------------------------------------------------------------------------


def sealed(write: Callable[[h5py.Group], object], write_rows: Callable[[h5py.File], object] | None = None) -> bytes:
    """Return the content of a file with the group of shardpress, which `write` fills, and the footer.

    `write_rows` writes datasets next to this group.
    """
    with h5py.File.in_memory() as file:
        if write_rows is not None:
            write_rows(file)
        group = file.create_group(GROUP)
        group.attrs["format"] = FORMAT
        write(group)
        file.flush()  # otherwise the image would lack the content of HDF5's cache
        data = bytes(file.id.get_file_image())
    return data + _FOOTER.pack(FORMAT.encode(), len(data), bytes.fromhex(digest([data])))


def write_json(group: h5py.Group, name: str, text: bytes) -> None:
    # Bytes have a fixed length, unlike strings, and each program can read them.
    group[name] = np.frombuffer(text, dtype=np.uint8)


# -- reading -------------------------------------------------------------------------------------------------------


def check_in_child(data: bytes, where: str) -> None:
    """Raise `DataError` if libhdf5 fails on the bytes of a file, or if `check_result` refuses it.

    The child reads a copy in memory, so that the result applies to these bytes, and not to a path. `SystemLimit` is
    raised if no child can be started.
    """
    with open(os.memfd_create("shardpress"), "wb") as file:
        file.write(data)
        file.flush()
        try:
            ask("check_result", file.fileno(), [], type(None), where)
        except (DataError, ReadFailed) as error:
            reason = (
                str(error) if isinstance(error, Refusal) else f"{where}: libhdf5 fails on it, or exceeds its limits"
            )
            raise DataError(f"{reason}. {_FORGED}") from error


def has_footer(path: Path) -> bool:
    """Return whether a file ends with a footer of shardpress, of any version."""
    try:
        with path.open("rb") as file:
            file.seek(-_FOOTER.size, io.SEEK_END)
            return file.read().startswith(_NAME)
    except OSError:
        return False


def digest_of(data: bytes) -> str:
    """Return the digest in the footer of a file whose content was checked."""
    _, _, stored = _FOOTER.unpack(data[-_FOOTER.size :])
    return str(stored.hex())


def read_sealed(path: Path, where: str, is_foreign: bool) -> bytes:
    """Return the content of a file whose footer is right."""
    if "\0" in str(path):
        raise NoInput(f"{where}: not the name of a file, expected an output directory, or a file that it contains")
    data = with_retries(lambda: _read(path, where), where)
    _check_footer(data, path, where)
    if is_foreign:
        check_in_child(data, where)
    return data


def _read(path: Path, where: str) -> bytes:
    """Read a file. Return only its last bytes if these are no footer: another file can be too large to read.

    Raise `OSError` if the storage fails.
    """
    try:
        with opened(str(path)) as (descriptor, identity):
            n_last = min(_FOOTER.size, identity.size)
            last = read_at(descriptor, identity.size - n_last, n_last)
            return read_at(descriptor, 0, identity.size) if last.startswith(_NAME) else last
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoInput(
            f"{where}: no finished run ({error.strerror}), expected the output directory of a finished run. Check the "
            "path, or finish the run."
        ) from error
    except OSError as error:
        meaning = translated_error(error, where)
        if isinstance(meaning, ReadFailed):
            raise
        raise meaning from error


def _check_footer(data: bytes, path: Path, where: str) -> None:
    name, n_bytes, stored = b"", 0, b""
    if len(data) >= _FOOTER.size:
        name, n_bytes, stored = _FOOTER.unpack(data[-_FOOTER.size :])
    form = name.rstrip(b"\0").decode("ascii", "replace")
    if form != FORMAT:
        try:
            check_version(FORMAT, form, "Repeat the run that made it with another --output.")
        except ShardpressError as error:
            raise type(error)(f"{where}: {error}") from error
        raise DataError(
            f"{where}: does not end with a footer of shardpress. An earlier version wrote it, another program has "
            f"changed it, or it is another file. {_RESTORE}"
        )
    if n_bytes != len(data) - _FOOTER.size or digest([memoryview(data)[:n_bytes]]) != stored.hex():
        raise DataError(f"{where}: its content does not match the digest in its footer: it is damaged. {_RESTORE}")


@contextmanager
def reading_group(data: bytes, where: str) -> Iterator[h5py.Group]:
    """Open the content of a file, and yield the group of shardpress. Raise `DataError` for unexpected content."""
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            yield file[GROUP]
    except (ShardpressError, MemoryError):
        raise
    except Exception as error:  # a forged file can cause any error
        # Only the text of a `ValueError` is useful to users.
        reason = "its structure is not as expected"
        if isinstance(error, ValueError) and str(error):
            reason = printable(str(error)[:_QUOTED])
        raise DataError(f"{where}: cannot be read: {reason}. {_FORGED}") from error
