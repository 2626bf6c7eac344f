"""Values that a process keeps because they are expensive, or must be made only once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["ProcessCache"]

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class ProcessCache(Generic[_Key, _Value]):
    """Values by key, kept by this process until they are replaced or the process ends.

    All mutable state of modules is stored in such caches, for example compiled models, which cannot be sent to another
    process, or the file systems that a warning was logged for.

    Threads: one lock guards each cache. `get_or_make` holds it while a value is made, so that a model is compiled once,
    no matter how many threads need it. Processes: a fork inherits the values, and gets a lock that is free.

    Parameters
    ----------
    max_size : int, optional
        Number of values above which the one that was used least recently is dropped. The default keeps all of them.
    """

    def __init__(self, max_size: int | None = None) -> None:
        self._max_size = max_size
        self._values: dict[_Key, _Value] = {}  # in order of last use, the most recent one last
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._free_lock)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: _Key) -> _Value | None:
        """Return the value of a key, or None."""
        with self._lock:
            return self._get(key)

    def get_or_make(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """Return the value of a key; if there is none, make it. Other threads wait meanwhile."""
        with self._lock:
            value = self._get(key)
            if value is None:
                self._make_room()  # before `make`, because two large models may not fit in memory
                value = make()
                self._put(key, value)
            return value

    def put(self, key: _Key, value: _Value) -> None:
        """Store a value in place of any other one of this key."""
        with self._lock:
            self._put(key, value)

    def put_if_new(self, key: _Key, value: _Value) -> bool:
        """Store a value if there is none of this key; return whether it was stored."""
        with self._lock:
            if key in self._values:
                return False
            self._put(key, value)
            return True

    def pop_last(self) -> _Value | None:
        """Take out the value that was used last; return None if there is no value."""
        with self._lock:
            if not self._values:
                return None
            _key, value = self._values.popitem()
            return value

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._values.clear()

    def _get(self, key: _Key) -> _Value | None:
        value = self._values.pop(key, None)
        if value is not None:
            self._values[key] = value  # now it is the last one
        return value

    def _put(self, key: _Key, value: _Value) -> None:
        self._values.pop(key, None)
        self._make_room()
        self._values[key] = value

    def _make_room(self) -> None:
        """Drop the values that were used least recently, until there is room for a new one."""
        if self._max_size is None:
            return
        while len(self._values) >= self._max_size:
            oldest = next(iter(self._values))
            del self._values[oldest]

    def _free_lock(self) -> None:
        self._lock = threading.Lock()
