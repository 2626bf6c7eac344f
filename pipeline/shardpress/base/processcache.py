"""Cache for values that a process computes only once, for example because they are expensive."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class ProcessCache(Generic[_Key, _Value]):
    """Values by key, which this process keeps until they are replaced or dropped, the least recently used ones first.

    All mutable state of modules is stored in such caches. Examples are compiled models, which cannot be sent to another
    process, and the file systems for which a warning has already been logged.

    A cache is thread-safe. `get_or_make` holds the lock of the cache while it makes a value, so that a model is
    compiled only once, even if several threads need it. A forked process inherits the values, and its lock is free.
    """

    def __init__(self, max_size: int | None = None) -> None:
        self._max_size = max_size
        self._values: dict[_Key, _Value] = {}  # in order of last use; the most recently used value is last
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._free_lock)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: _Key) -> _Value | None:
        with self._lock:
            return self._get(key)

    def get_or_make(self, key: _Key, make: Callable[[], _Value]) -> _Value:
        """Return the value of a key. If the key has no value, make the value while other threads wait."""
        with self._lock:
            value = self._get(key)
            if value is None:
                self._make_room()  # before `make`, because two large models may not fit in memory
                value = make()
                self._put(key, value)
            return value

    def put(self, key: _Key, value: _Value) -> None:
        with self._lock:
            self._put(key, value)

    def put_if_new(self, key: _Key, value: _Value) -> bool:
        """Store the value of a key unless the key already has a value. Return whether the value was stored."""
        with self._lock:
            if key in self._values:
                return False
            self._put(key, value)
            return True

    def pop_last(self) -> _Value | None:
        """Remove and return the most recently used value, or return None if the cache is empty."""
        with self._lock:
            if not self._values:
                return None
            _key, value = self._values.popitem()
            return value

    def clear(self) -> None:
        with self._lock:
            self._values.clear()

    def _get(self, key: _Key) -> _Value | None:
        value = self._values.pop(key, None)
        if value is not None:
            self._values[key] = value  # move it to the end
        return value

    def _put(self, key: _Key, value: _Value) -> None:
        self._values.pop(key, None)
        self._make_room()
        self._values[key] = value

    def _make_room(self) -> None:
        if self._max_size is None:
            return
        while len(self._values) >= self._max_size:
            oldest = next(iter(self._values))
            del self._values[oldest]

    def _free_lock(self) -> None:
        self._lock = threading.Lock()
