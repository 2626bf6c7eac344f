"""Helpers for tests of the child process: modified children, and process ids."""

import uuid

from shardpress.hdf5.child import ask as ask_module
from shardpress.shards import vet as vet_module

# A child like the real one, except for the function that describes a file.
MODIFIED_CHILD = """
import ctypes, os, socket, sys, time
import h5py
import numpy as np
from shardpress.hdf5.child import server
from shardpress.hdf5.child.describe import describe as honest
warm_up = server._warm_up
send = server._send
def fake(*messages):
    def send_once(connection, *_):
        server._send = send
        for message in messages:
            connection.sendall(message)
    server._send = send_once
def message(data):
    return server.LENGTH.pack(len(data)) + data
def describe(file, dataset, *wanted):
    {lines}
def start():
    warm_up()
    server._FUNCTIONS['describe'] = describe
server._warm_up = start
main = server.main
"""


def plant(monkeypatch, folder, source):
    """Make children run a module with this source instead of the real one."""
    module = f"bent_{uuid.uuid4().hex}"
    (folder / f"{module}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(ask_module, "_MODULE", module)


def vet_by_child(path, *selection):
    """Vet a file, although a child has described one like it before."""
    vet_module._LIKE.clear()
    return vet_module.vet(path, *selection)


def child_pid():
    assert len(ask_module._idle) == 1
    idle_child = ask_module._idle.pop_last()
    ask_module._idle.put(id(idle_child), idle_child)
    return idle_child._process.pid
