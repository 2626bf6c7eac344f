"""Calls of compiled functions that are under way on a device other than the CPU: what waits for them, waits for it."""

from __future__ import annotations

import threading

__all__ = ["Calls", "on_device"]


class Calls:
    """How many are under way: a context for each of them, in any thread."""

    def __init__(self) -> None:
        self.n = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.n += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self.n -= 1


on_device = Calls()
