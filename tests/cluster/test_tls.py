"""Tests of TLS connections: an error of one does not affect others of the same thread."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from shardpress.cluster.tls import IsolatedSecurity, _IsolatedSocket

Pair = tuple[ssl.SSLSocket, ssl.SSLSocket]


@pytest.fixture(scope="module")
def security() -> IsolatedSecurity:
    return IsolatedSecurity.temporary()


@pytest.fixture
def connect(security: IsolatedSecurity) -> Iterator[Callable[[], Pair]]:
    """Return a function that opens a connection, and returns its two ends, which do not block."""
    opened: list[ssl.SSLSocket] = []

    def pair() -> Pair:
        listener = socket.create_server(("127.0.0.1", 0))
        outgoing = socket.create_connection(listener.getsockname())
        incoming, _ = listener.accept()
        listener.close()
        served: list[ssl.SSLSocket] = []
        context = security.get_listen_args("scheduler")["ssl_context"]
        thread = threading.Thread(target=lambda: served.append(context.wrap_socket(incoming, server_side=True)))
        thread.start()
        client = security.get_connection_args("client")["ssl_context"].wrap_socket(outgoing)
        thread.join()
        opened.extend([client, *served])
        for end in (client, served[0]):
            end.setblocking(False)
        wait_until_idle(client)
        return client, served[0]

    yield pair
    for each in opened:
        each.close()


def wait_until_idle(end: ssl.SSLSocket) -> None:
    """Read the session tickets that a server sends after the handshake."""
    for _ in range(20):
        with pytest.raises(ssl.SSLWantReadError):
            end.recv(1)
        time.sleep(0.005)


def use_until_lost(end: ssl.SSLSocket, reads: bool) -> None:
    """Write to a connection, and optionally read from it, until an error of the operating system is raised."""
    while True:
        try:
            end.send(b"x")
            if reads:
                end.recv(1)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:  # older versions of Python hide the error of the operating system
            raise ConnectionError from error
        time.sleep(0.005)


@pytest.mark.parametrize("operation", ["read", "write"])
def test_a_lost_connection_does_not_affect_others(operation: str, connect: Callable[[], Pair]) -> None:
    client, lost = connect()
    intact, peer = connect()
    os.close(client.detach())  # without a farewell, like a process that is killed
    with pytest.raises(ConnectionError):
        use_until_lost(lost, reads=operation == "read")
    with pytest.raises(ssl.SSLWantReadError):
        intact.recv(1)
    peer.send(b"data")
    select.select([intact], [], [], 30)
    assert intact.recv(4) == b"data"


def test_all_connections_of_a_cluster_are_isolated(security: IsolatedSecurity) -> None:
    for arguments in (security.get_connection_args("worker"), security.get_listen_args("scheduler")):
        assert arguments["ssl_context"].sslsocket_class is _IsolatedSocket
    unencrypted = IsolatedSecurity(require_encryption=False)
    assert unencrypted.get_connection_args("client")["ssl_context"] is None
