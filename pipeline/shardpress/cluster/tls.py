"""TLS connections whose errors do not affect other connections of the same thread.

OpenSSL keeps a queue of errors for each thread, and ``SSL_get_error`` looks into it. CPython 3.11.12, 3.12.9, 3.13.2
and later versions leave an error of the operating system in the queue (python/cpython issue 148594). If the peer of one
connection closes it, the next read of any other connection of the thread then raises ``BrokenPipeError``, although that
connection is intact.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Security


class _IsolatedSocket(ssl.SSLSocket):
    """TLS socket that removes its own errors from the error queue of the thread."""

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        with self._own_errors():
            return super().read(len, buffer)

    def send(self, data: Any, flags: int = 0) -> int:
        with self._own_errors():
            return super().send(data, flags)

    def do_handshake(self, block: bool = False) -> None:
        with self._own_errors():
            super().do_handshake(block)

    @contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Clear the error queue if an error of the operating system is raised."""
        try:
            yield
        except ssl.SSLError:  # CPython has cleared the queue
            raise
        except OSError:
            # CPython has no function that clears the queue, but does so before it creates a connection.
            self.context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
            raise


class IsolatedSecurity(Security):
    """Certificates of a cluster, for connections that are each an `_IsolatedSocket`."""

    def get_connection_args(self, role: str) -> dict[str, Any]:
        return _isolate(super().get_connection_args(role))

    def get_listen_args(self, role: str) -> dict[str, Any]:
        return _isolate(super().get_listen_args(role))


def _isolate(arguments: dict[str, Any]) -> dict[str, Any]:
    context = arguments["ssl_context"]
    if context is not None:
        context.sslsocket_class = _IsolatedSocket
    return arguments
