"""Facts about NVIDIA's driver.

A child process collects them, because a driver may hang or crash the process that calls it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from contextlib import suppress
from ctypes import byref, c_int
from dataclasses import dataclass

from shardpress.childprocess import collect_reports, report

Version = tuple[int, int]  # CUDA version, or compute capability of a card

_NAME = "libcuda.so.1"
_SECONDS = 60.0  # time limit; cuInit takes several seconds on a machine with many cards
_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver on this machine.

    Attributes
    ----------
    file : str
        Path of libcuda.so.1.
    cuda : tuple of int
        Latest CUDA version whose code the driver accepts.
    capabilities : tuple of tuple of int
        Compute capability of each card. Empty if the driver cannot open any card.
    """

    file: str
    cuda: Version
    capabilities: tuple[Version, ...] = ()


def find_driver(seconds: float = _SECONDS) -> Driver | None:
    """Return the driver of this machine, or None if no driver answers within `seconds`."""
    # The child reports the version before it opens the cards, because the driver may then hang or crash.
    found = collect_reports(__name__, seconds)
    if "cuda" not in found:
        return None
    capabilities = tuple(tuple(each) for each in found.get("capabilities", ()))
    return Driver(found["file"], tuple(found["cuda"]), capabilities)


def format_version(version: Sequence[int]) -> str:
    """Return a version as text, such as ``12.4``."""
    return ".".join(map(str, version))


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Report facts about the driver. If the driver hangs or crashes, the earlier reports are not lost."""
    try:
        library = ctypes.CDLL(_NAME)
    except OSError:
        return
    cuda = cuda_version(library)
    if cuda is None:  # the stub library of a CUDA toolkit returns an error
        return
    files = files_of("libcuda.") or [_NAME]
    report(file=files[0], cuda=cuda)
    with suppress(AttributeError):
        code, n_cards = count_cards(library)
        if code:
            n_cards = 0
        report(capabilities=[capability_of(library, card) for card in range(n_cards)])
    report(done=True)


def cuda_version(library: ctypes.CDLL) -> Version | None:
    """Return the latest CUDA version whose code a driver accepts, or None if the driver returns an error."""
    number = c_int()
    if library.cuDriverGetVersion(byref(number)):
        return None
    return number.value // 1000, number.value % 1000 // 10


def count_cards(library: ctypes.CDLL) -> tuple[int, int]:
    """Initialize a driver. Return its error code, which is 0 for success, and the number of cards."""
    n_cards = c_int()
    code = library.cuInit(0) or library.cuDeviceGetCount(byref(n_cards))
    return int(code), n_cards.value


def capability_of(library: ctypes.CDLL, card: int) -> list[int]:
    """Return the compute capability of a card, given its number, which is also its handle."""
    capability = []
    for attribute in _CAPABILITY:
        number = c_int()
        library.cuDeviceGetAttribute(byref(number), attribute, card)
        capability.append(number.value)
    return capability


def files_of(*prefixes: str) -> list[str]:
    """Return the files in the memory map of this process whose names start with one of the prefixes.

    Libraries that forward calls to other libraries come first.
    """
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if line.count("/")}
    files = [path for path in paths if os.path.basename(path).startswith(prefixes)]
    return sorted(files, key=lambda path: (not path.endswith(".so"), path))  # NVIDIA's file names end with a version
