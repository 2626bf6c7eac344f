"""Choice of the NVRTC and cuBLAS packages on PyPI that fit a driver.

NVRTC generates PTX code, which libgpuarray passes to the driver. A driver rejects PTX code of a later CUDA version than
its own with error 222. cuBLAS contains machine code, and a driver accepts it from all releases of its major version.
"""

from __future__ import annotations

import re
from argparse import ArgumentTypeError

from shardpress.base.driver import Driver, Version, format_version
from shardpress.base.errors import DeviceError

_OLDEST = (12, 0)  # earliest version whose NVRTC compiles all kernels of libgpuarray 0.7.6 for cards up to Hopper
_OLDEST_DRIVER = "525.60.13"
_LATEST_MAJOR = 13  # later versions may not support some cards; drivers accept the code of all earlier versions
_OLDEST_CARD_OF_13 = (7, 5)  # Turing; CUDA 12 is the last version that supports Volta
_NAMES = ("nvidia-cuda-nvrtc", "nvidia-cublas")


def choose_packages(driver: Driver | None, requested: Version | None = None) -> tuple[tuple[str, ...], str]:
    """Return requirements of NVRTC and cuBLAS that fit the requested CUDA version or the driver, and the reason."""
    if requested is not None:
        why = f"for CUDA {format_version(requested)}, as requested"
        if driver is not None and requested > driver.cuda:
            why += f"; the driver of this machine supports CUDA {format_version(driver.cuda)} or earlier"
        return _not_newer(*requested), why
    if driver is None:
        # All drivers since 2022 accept the code of CUDA 12.0, and libgpuarray does not need a later NVRTC. Blackwell
        # cards need cuBLAS 12.8 or later.
        nvrtc, _ = _not_newer(*_OLDEST)
        _, cublas = _not_newer(12)
        return (nvrtc, cublas), "for any driver of CUDA 12.0 or later, because no driver was found"
    if driver.cuda < _OLDEST:
        raise DeviceError(
            f"{driver.file}: the driver supports CUDA {format_version(driver.cuda)}, expected "
            f"{format_version(_OLDEST)} or later. Install NVIDIA's driver {_OLDEST_DRIVER} or later, then run the "
            "same command again."
        )
    why = f"for the driver's CUDA {format_version(driver.cuda)} ({driver.file})"
    oldest_card = min(driver.capabilities, default=_OLDEST_CARD_OF_13)
    if driver.cuda >= (13, 0) and oldest_card < _OLDEST_CARD_OF_13:
        card = f"the card of capability {format_version(oldest_card)}"
        return _not_newer(12), f"{why}, but packages of CUDA 12, because later packages do not support {card}"
    return _not_newer(*driver.cuda), why


def parse_version(text: str) -> Version:
    """Parse a CUDA version such as ``12.4``. This function is the `type` of an argument."""
    match = re.fullmatch(r"([0-9]{1,3})\.([0-9]{1,3})", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r}, expected a version of CUDA, such as 12.4")
    version = int(match[1]), int(match[2])
    if version < _OLDEST:
        raise ArgumentTypeError(f"CUDA {text}, expected {format_version(_OLDEST)} or later")
    return version


def _not_newer(major: int, minor: int | None = None) -> tuple[str, ...]:
    """Return requirements that exclude packages for later CUDA versions. By default, all minor versions are allowed."""
    if major > _LATEST_MAJOR:
        major = _LATEST_MAJOR
        minor = None
    end = f"{major + 1}"
    if minor is not None:
        end = f"{major}.{minor + 1}"
    suffix = f"-cu{major}" if major == 12 else ""  # since CUDA 13, names have no suffix
    return tuple(f"{name}{suffix}>={major},<{end}" for name in _NAMES)
