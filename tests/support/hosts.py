"""Several hosts on this machine: Linux network namespaces that a bridge connects. They need root."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Place:
    """A host for a process.

    Attributes
    ----------
    command : tuple of str
        Prefix of the command of the process.
    address : str
    """

    command: tuple[str, ...]
    address: str


HERE = Place((), "127.0.0.1")


class Hosts:
    """Hosts that exist for the duration of the context.

    Parameters
    ----------
    n : int
        Number of hosts in addition to the first one, which is connected to all others.

    Attributes
    ----------
    places : list of Place
    """

    def __init__(self, n: int) -> None:
        self._names = [f"shardpress-{os.getpid()}-{i}" for i in range(n + 1)]
        self.places = [
            Place(("ip", "netns", "exec", name), f"10.77.0.{i}") for i, name in enumerate(self._names, start=1)
        ]

    def __enter__(self) -> Self:
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)  # some may not exist yet

    def _connect(self) -> None:
        first = self._names[0]
        for name in self._names:
            _ip(f"netns add {name}")
            _ip(f"-n {name} link set lo up")
        _ip(f"-n {first} link add middle type bridge")
        _ip(f"-n {first} address add {self.places[0].address}/24 dev middle")
        _ip(f"-n {first} link set middle up")
        for i, (name, place) in enumerate(zip(self._names[1:], self.places[1:], strict=True), start=1):
            _ip(f"-n {first} link add cable{i} type veth peer name plug netns {name}")
            _ip(f"-n {first} link set cable{i} master middle up")
            _ip(f"-n {name} address add {place.address}/24 dev plug")
            _ip(f"-n {name} link set plug up")

    def pull(self, i: int) -> None:
        """Disconnect a host from the network, as if its cable were unplugged. Neither end is notified."""
        _ip(f"-n {self._names[0]} link set cable{i} nomaster")

    def plug(self, i: int) -> None:
        """Connect a host to the network again."""
        _ip(f"-n {self._names[0]} link set cable{i} master middle")


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True)
