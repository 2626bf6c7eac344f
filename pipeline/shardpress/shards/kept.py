"""Descriptions of input files that an earlier run has made. A file that has not changed is not opened again.

They are a cache: without them, or with those of another version, a run takes longer and has the same result.
"""

from __future__ import annotations

import os
import time
from functools import cache

import h5py
import msgspec
from blake3 import blake3

from shardpress.base.packages import version_of
from shardpress.hdf5.child.message import unpacked
from shardpress.hdf5.files import Identity
from shardpress.hdf5.shard import Description, FileContents
from shardpress.shards.sources import Source
from shardpress.shards.vet import InputFile, Master, Selection

_SETTLED_NS = 2 * 10**9  # a file that is older has other times after its next change, even with coarse times
_MOST_BYTES = 2**27  # of all answers, which are in memory during a run
_DIGEST_BYTES = 32


class _KeptFile(msgspec.Struct, array_like=True, frozen=True):
    path: str
    stat: tuple[int, int, int, int]
    answer: int  # position in the list of answers


class _Content(msgspec.Struct, array_like=True, frozen=True):
    made_by: list[str]
    selection: Selection
    answers: list[bytes]  # of the child, each one once
    files: list[_KeptFile]


class KeptDescriptions:
    """The descriptions of files in which the same datasets are selected.

    `content` is what `data` returned in an earlier run. If it is damaged, or was made for another selection or by
    another version, all files are unknown.
    """

    def __init__(self, selection: Selection, content: bytes = b"") -> None:
        self._selection = selection
        self._known: dict[str, _KeptFile] = {}
        self._answers: list[bytes] = []
        known = _decoded(content)
        if known is not None and (known.made_by, known.selection) == (_versions(), selection):
            self._known = {file.path: file for file in known.files}
            self._answers = known.answers
        self._described = cache(self._description_of)
        self._used: dict[str, tuple[tuple[int, int, int, int], bytes]] = {}
        self._n_bytes = 0
        self.is_changed = False
        """Whether files have been opened, so that the descriptions should be kept again."""

    def __bool__(self) -> bool:
        return bool(self._used)

    def find(self, source: Source) -> InputFile | None:
        """Return a file that has not changed since it was described, or None."""
        key = os.path.abspath(source.path)
        known = self._known.get(key)
        if known is None or source.identity is None or _stat_of(source.identity) != known.stat:
            return None
        description = self._described(known.answer)
        if description is None:
            return None
        self._used[key] = (known.stat, self._answers[known.answer])
        return InputFile(source.path, source.identity, description, 0, description.shape[0])

    def add(self, file: InputFile | Master) -> None:
        """Keep the description of a file that has just been opened, unless the file may still be changing."""
        answer = file.answer if isinstance(file, InputFile) else None
        if answer is None or self._n_bytes > _MOST_BYTES:
            return
        times = (file.identity.mtime_ns, file.identity.ctime_ns)
        if max(times) < time.time_ns() - _SETTLED_NS:
            self._used[os.path.abspath(file.path)] = (_stat_of(file.identity), answer)
            self._n_bytes += len(answer)
            self.is_changed = True

    def data(self) -> bytes:
        """Return what a later run needs to know about the files of this run."""
        numbers: dict[bytes, int] = {}
        files = [
            _KeptFile(path, stat, numbers.setdefault(answer, len(numbers)))
            for path, (stat, answer) in self._used.items()
        ]
        content = msgspec.msgpack.encode(_Content(_versions(), self._selection, list(numbers), files))
        return content + blake3(content).digest()

    def _description_of(self, answer: int) -> Description | None:
        try:
            contents = unpacked(bytearray(self._answers[answer]), FileContents)
        except (ValueError, TypeError, LookupError):
            return None
        rows = contents.rows if isinstance(contents, FileContents) else None
        return rows if isinstance(rows, Description) else None


def _decoded(data: bytes) -> _Content | None:
    content, stored = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if blake3(content).digest() != stored:
        return None
    try:
        return msgspec.msgpack.decode(content, type=_Content)
    except (ValueError, msgspec.ValidationError):
        return None


def _stat_of(identity: Identity) -> tuple[int, int, int, int]:
    return identity.size, identity.mtime_ns, identity.ctime_ns, identity.inode


def _versions() -> list[str]:
    """Return what the child's answers depend on, except for the files and the selection."""
    return [version_of("shardpress"), h5py.version.version, h5py.version.hdf5_version]
