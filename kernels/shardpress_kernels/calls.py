"""Count of the running calls of compiled functions on a device; calls on the CPU are not counted."""

from __future__ import annotations

import threading


class _InFlightCalls:
    """A context manager that counts the running calls of all threads."""

    def __init__(self) -> None:
        self.n = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.n += 1

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self.n -= 1


on_device = _InFlightCalls()
"""Calls that are running on a device. A signal or a progress report may have to wait for them."""
