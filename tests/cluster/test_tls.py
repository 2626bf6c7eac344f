"""Tests of TLS connections: an error of one does not affect others of the same thread."""

from __future__ import annotations

import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from shardpress.cluster.tls import IsolatedSecurity


def connect(security: IsolatedSecurity) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Open a connection and return its two ends, which do not block."""
    ours, theirs = socket.socketpair()
    with ThreadPoolExecutor(1) as pool:
        context = security.get_listen_args("scheduler")["ssl_context"]
        handshake = pool.submit(context.wrap_socket, theirs, server_side=True)
        client = security.get_connection_args("client")["ssl_context"].wrap_socket(ours)
        server = handshake.result()
    client.setblocking(False)
    server.setblocking(False)
    with pytest.raises(ssl.SSLWantReadError):
        client.recv(1)  # reads the session tickets that a server sends after the handshake
    return client, server


def test_a_lost_connection_does_not_affect_others() -> None:
    security = IsolatedSecurity.temporary()
    client, lost = connect(security)
    intact, peer = connect(security)
    with lost, intact, peer:
        os.close(client.detach())  # without a farewell, like a process that is killed
        with pytest.raises((BrokenPipeError, ssl.SSLError)):  # the latter in older versions of Python
            lost.send(b"x")
        with pytest.raises(ssl.SSLWantReadError):
            intact.recv(1)
        peer.send(b"data")
        assert intact.recv(4) == b"data"
