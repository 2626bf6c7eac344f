"""Facts about NVIDIA's driver.

A child process collects them, because a driver may hang or crash the process that calls it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int
from dataclasses import dataclass

from shardpress.base.childprocess import collect_reports, report

Version = tuple[int, int]  # CUDA version, or compute capability of a card

_NAME = "libcuda.so.1"
_SECONDS = 60.0  # time limit; cuInit takes several seconds on a machine with many cards
_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver on this machine."""

    file: str  # path of libcuda.so.1
    cuda: Version  # latest CUDA version whose code the driver accepts
    capabilities: tuple[Version, ...] = ()  # of each card; empty if the driver cannot open any card


def find_driver() -> Driver | None:
    """Return the driver of this machine, or None if no driver answers."""
    facts = collect_reports(__name__, _SECONDS)
    if "cuda" not in facts:
        return None
    capabilities = tuple(tuple(version) for version in facts.get("capabilities", ()))
    return Driver(facts["file"], tuple(facts["cuda"]), capabilities)


def format_version(version: Sequence[int]) -> str:
    """Return a version as text, such as ``12.4``."""
    return ".".join(map(str, version))


# -- in the child ------------------------------------------------------------------------------------------------------


def main() -> None:
    """Report facts about the driver."""
    report_driver()
    report(done=True)


def report_driver() -> tuple[ctypes.CDLL | None, list[Version]]:
    """Report the ``file`` of the driver, its ``cuda`` version, and the ``capabilities`` of its cards or an ``error``.

    The version is reported before the cards are opened, because the driver may then hang or crash. Returns the driver
    and the capabilities.
    """
    try:
        driver = ctypes.CDLL(_NAME)
    except OSError:
        return None, []
    number = c_int()
    if driver.cuDriverGetVersion(byref(number)):  # the stub library of a CUDA toolkit returns an error
        return None, []
    report(file=_file_of_driver(), cuda=(number.value // 1000, number.value % 1000 // 10))
    n_cards = c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(byref(n_cards))
    if code:
        report(error=f"cuInit: {error_name(driver, code)}")
        return None, []
    capabilities = [_capability_of(driver, card) for card in range(n_cards.value)]
    report(capabilities=capabilities)
    return driver, capabilities


def error_name(driver: ctypes.CDLL, code: int) -> str:
    """Return the name and the number of an error."""
    name = c_char_p()
    driver.cuGetErrorName(code, byref(name))
    return f"{(name.value or b'error').decode()} ({code})"


def _capability_of(driver: ctypes.CDLL, card: int) -> Version:
    """Return the compute capability of a card, given its number, which is also its handle."""
    major = c_int()
    minor = c_int()
    for number, attribute in zip((major, minor), _CAPABILITY, strict=True):
        driver.cuDeviceGetAttribute(byref(number), attribute, card)
    return major.value, minor.value


def _file_of_driver() -> str:
    with open("/proc/self/maps") as maps:
        paths = [line.split(maxsplit=5)[5].strip() for line in maps if "/" in line]
    return next((path for path in paths if os.path.basename(path).startswith("libcuda.so.")), _NAME)
