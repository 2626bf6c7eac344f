"""Check whether other users could replace a directory, for example by renaming a directory above it.

Theano runs code from its compile cache, and Dask imports modules from its scratch directories.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ALL_USERS = 2**32 - 1  # number of user ids that the initial user namespace maps


class UntrustedDirectory(PermissionError):
    """Error for a private directory that other users could replace."""


def private_directory(prefix: str) -> Path:
    """Create a temporary directory that no other user can read, write or replace.

    Raise `UntrustedDirectory` if other users can rename files of the temporary directory, or another `OSError`.
    """
    folder = Path(tempfile.gettempdir())
    problem = untrusted_above(folder / prefix)
    if problem is not None:
        raise UntrustedDirectory(
            f"other users could replace files in the temporary directory {folder}: {problem}. Set TMPDIR to a "
            "directory that only you can write"
        )
    return Path(tempfile.mkdtemp(prefix=prefix, dir=folder))


def untrusted_above(path: str | Path) -> str | None:
    """Return why other users could replace `path`; None if they cannot.

    Every directory above it must belong to this user or to root. If its group or all users can write to it, it must be
    sticky, which prevents users from renaming files of others.
    """
    trusted = _trusted_users()
    for directory in _directories_above(path):
        problem = _describe_problem(directory, trusted)
        if problem is not None:
            return problem
    return None


def _describe_problem(directory: str, trusted: set[int]) -> str | None:
    """Return why users who are not trusted could rename files in a directory; None if they cannot."""
    link = os.lstat(directory)
    target = os.stat(directory)
    for owner in (link.st_uid, target.st_uid):
        if owner not in trusted:
            return f"{directory} belongs to user {owner}, expected {os.geteuid()} or root"
    mode = stat.S_IMODE(target.st_mode)
    if mode & 0o022 and not mode & stat.S_ISVTX:
        return f"{directory} has mode {mode:04o}, so that other users can rename its files"
    return None


def _directories_above(path: str | Path) -> Iterator[str]:
    """Yield every directory above a path, the nearest first, and the directories above the targets of links."""
    visited = set[str]()
    pending = [Path(os.path.abspath(path)).parent]
    while pending:
        start = pending.pop()
        for directory in map(str, (start, *start.parents)):
            if directory in visited:
                continue
            visited.add(directory)
            yield directory
            if os.path.islink(directory):
                pending.append(_target_of(directory))


def _target_of(link: str) -> Path:
    """Return the path that a link points to, which can be a link itself."""
    folder = os.path.realpath(os.path.dirname(link))
    return Path(os.path.normpath(os.path.join(folder, os.readlink(link))))


def _trusted_users() -> set[int]:
    """Return the ids of the users who can always replace the files of this process: its own user and root."""
    trusted = {0, os.geteuid()}
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
        n_mapped = sum(int(line.split()[2]) for line in lines)
        if n_mapped < _ALL_USERS:
            # In a user namespace, for example of Apptainer, files of unmapped users appear to belong to the overflow
            # user. Root of the machine can be unmapped.
            trusted.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    except (OSError, ValueError, IndexError):
        pass  # /proc is not available
    return trusted
