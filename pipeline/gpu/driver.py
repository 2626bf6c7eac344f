"""NVIDIA's driver on this machine, asked in a process of its own: a driver may hang or crash whoever asks it."""

from __future__ import annotations

import ctypes
import json
from contextlib import suppress
from dataclasses import dataclass
from subprocess import DEVNULL, PIPE
from typing import Any

from pipeline.childprocess import ChildProcess

__all__ = ["Driver", "Version", "find_driver", "main"]

Version = tuple[int, int]  # of CUDA, or a card's compute capability

_SECONDS = 60.0  # cuInit takes some on a machine with many cards
_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of cuda.h


@dataclass(frozen=True)
class Driver:
    """What the driver says of itself.

    Attributes
    ----------
    file : str
        The libcuda.so.1 that was asked.
    cuda : tuple of int
        The latest version of CUDA whose code it takes.
    capabilities : tuple of tuple of int
        Of each card that it opens; none where it opens none.
    """

    file: str
    cuda: Version
    capabilities: tuple[Version, ...] = ()


def find_driver(seconds: float = _SECONDS) -> Driver | None:
    """The driver of this machine, or None where there is none that answers."""
    # It reports its version before it opens the cards: what it has reported counts even if it is killed then.
    said, _, _ = ChildProcess(__name__, stdout=PIPE, stderr=DEVNULL).answer(seconds)
    found: dict[str, Any] = {}
    for line in said.splitlines():
        found |= json.loads(line)
    if "cuda" not in found:
        return None
    return Driver(found["file"], tuple(found["cuda"]), tuple(map(tuple, found.get("capabilities", ()))))


def main() -> None:
    """In the child: say what there is, as far as it comes, a line of JSON after the other."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)):  # a toolkit's stub for linking answers, but with an error
        return
    cuda = (number.value // 1000, number.value % 1000 // 10)
    print(json.dumps({"file": _loaded_from(), "cuda": cuda}), flush=True)
    with suppress(AttributeError):
        print(json.dumps({"capabilities": _capabilities(library)}), flush=True)


def _capabilities(library: Any) -> list[list[int]]:
    n_cards, number = ctypes.c_int(), ctypes.c_int()
    if library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(n_cards)):
        return []
    found: list[list[int]] = []
    for card in range(n_cards.value):  # cuDeviceGet gives the card's own number
        found.append([])
        for attribute in _CAPABILITY:
            library.cuDeviceGetAttribute(ctypes.byref(number), attribute, card)
            found[-1].append(number.value)
    return found


def _loaded_from() -> str:
    with open("/proc/self/maps") as maps:
        paths = [line.split(maxsplit=5)[5].strip() for line in maps if "libcuda." in line.rpartition("/")[2]]
    return paths[0] if paths else "libcuda.so.1"
