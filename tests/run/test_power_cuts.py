"""Tests of power cuts in whole runs: the same command then gives the same bits.

A `PowerLog` collects every state in which a power cut may leave the files of a run. Sample: every 18th to 80th state;
with TEST_CASES=all, each state.
"""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pytest

from tests.support.faulty import RecordingDisk, journal_lines, journal_records
from tests.support.protocol import KINDS, Scenario, call_name, select
from tests.support.standin import install

STATES = ("lost", "empty", "zeros", "mixed")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_power_can_be_cut_after_some_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    install(monkeypatch)
    scenario = Scenario(tmp_path / kind, kind)
    log = PowerLog(scenario.new_output().parent)
    assert scenario.run(log.folder / "out", log) == 0
    stride = 18 if kind in ("new", "append") else 80
    for state in STATES:
        found = [(number, remains) for number, its_state, remains in log.states if its_state == state]
        assert kind != "new" or found
        for number, remains in select(found, slice(None, None, stride)):
            output = scenario.new_output()
            shutil.rmtree(output.parent)
            write(remains, output.parent)
            scenario.check(output, f"power cut after {call_name(scenario, number)}: {state}")


@dataclass(eq=False)
class Content:
    """Content of a file, independent of its names: the written bytes, and the bytes that are on the disk."""

    written: bytes = b""
    synced: bytes = b""

    @property
    def unsynced(self) -> bytes:
        return self.written[len(self.synced) :]


GONE = Content()
Names = dict[PurePath, Content | None]  # content of each path, or None for a directory
Change = tuple[PurePath, PurePath | None, Content | None]  # a name, its name before a rename, and the content
Remains = dict[PurePath, bytes | None]  # bytes of each file after a power cut, or None for a directory


class PowerLog(RecordingDisk):
    """Disk that collects the states in which a power cut after each call may leave a folder.

    ``states`` contains each distinct state once: the number of the call, the kind, and the files. ``lost``: everything
    that was not synced is lost. ``empty`` and ``zeros``: names that were not synced exist, but the data that were not
    synced are missing or zeros. ``mixed``: a random subset of the names and the beginning of the data.

    The current content of the folder is regarded as synced.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.states: list[tuple[int, str, Remains]] = []
        self._seen: set[frozenset[tuple[PurePath, bytes | None]]] = set()
        self._one_at_a_time = threading.Lock()
        self._rng = random.Random(0)
        self._opened: dict[int, Content] = {}  # by the descriptor
        self._names: Names = {path.relative_to(folder): content_of(path) for path in folder.rglob("*")}
        self._durable = dict(self._names)
        self._pending: list[Change] = []  # changes of names that are not synced yet, in order
        self._lost_before = lost_files(remaining(self._durable, lambda content: b""))  # by an earlier power cut

    def between(self, number: int, name: str, arguments: tuple[Any, ...], do: Callable[..., Any]) -> Any:
        with self._one_at_a_time:
            result = do(*arguments)
            self._record(name, arguments, result)
            self._add_states(number, name)
            return result

    def _record(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        first = arguments[0]
        path = first.relative_to(self.folder) if isinstance(first, Path) and first.is_relative_to(self.folder) else None
        if name in ("write", "reserve"):
            self._opened[first].written = Path(f"/proc/self/fd/{first}").read_bytes()
        elif name == "sync":
            self._opened[first].synced = self._opened[first].written
        elif path is None:  # a descriptor, or a directory above the folder, which existed before
            return
        elif name == "create":
            self._opened[result] = Content()
            self._change(path, None, self._opened[result])
        elif name == "open_to_append":
            content = self._names[path]
            assert content is not None
            self._opened[result] = content
        elif name == "replace":
            self._change(arguments[1].relative_to(self.folder), path, self._names[path])
        elif name == "remove":
            self._change(path, None, GONE)
        elif name == "make_directory":
            self._change(path, None, None)
        elif name == "sync_directory":
            for change in [change for change in self._pending if change[0].parent == path]:
                apply(self._durable, change)
                self._pending.remove(change)

    def _change(self, *change: Any) -> None:
        apply(self._names, change)  # type: ignore[arg-type]
        self._pending.append(change)  # type: ignore[arg-type]

    def _add_states(self, number: int, name: str) -> None:
        lost = remaining(self._durable, lambda content: b"")
        self._add(number, "lost", lost)
        self._add(number, "empty", remaining(self._names, lambda content: b""))
        self._add(number, "zeros", remaining(self._names, lambda content: bytes(len(content.unsynced))))
        if self._pending or name == "write":
            names = dict(self._durable)
            for change in self._pending:
                if self._rng.random() < 0.5:
                    apply(names, change)
            self._add(number, "mixed", remaining(names, self._beginning))
        assert lost_files(lost) <= self._lost_before, f"call {number}: the journal is on the disk before a file"

    def _beginning(self, content: Content) -> bytes:
        return content.unsynced[: self._rng.randrange(len(content.unsynced) + 1)]

    def _add(self, number: int, kind: str, remains: Remains) -> None:
        key = frozenset(remains.items())
        if key not in self._seen:
            self._seen.add(key)
            self.states.append((number, kind, remains))


def content_of(path: Path) -> Content | None:
    return Content(path.read_bytes(), path.read_bytes()) if path.is_file() else None


def apply(names: Names, change: Change) -> None:
    """Change a name. A rename is one change of two names."""
    path, moved_from, content = change
    if moved_from is not None:
        names.pop(moved_from, None)
    if content is GONE:
        names.pop(path, None)
    else:
        names[path] = content


def remaining(names: Names, unsynced: Callable[[Content], bytes]) -> Remains:
    """Return files and directories with their remaining content. Files in a lost directory are lost."""
    remains: Remains = {}
    for path, content in sorted(names.items(), key=lambda item: len(item[0].parts)):
        if path.parent == PurePath() or path.parent in remains:
            remains[path] = None if content is None else content.synced + unsynced(content)
    return remains


def lost_files(remains: Remains) -> set[PurePath]:
    """Return the files that the journal names, but that do not exist."""
    named: set[PurePath] = set()
    for path, data in remains.items():
        if path.name == "journal.jsonl" and data is not None:
            named |= {path.parents[1] / record["entry"]["file"] for record in journal_records(journal_lines(data))}
    return named - remains.keys()


def write(remains: Remains, folder: Path) -> None:
    """Write the state after a power cut to a new folder."""
    folder.mkdir()
    for path, data in remains.items():
        if data is None:
            (folder / path).mkdir()
        else:
            (folder / path).write_bytes(data)
