"""The NVRTC and cuBLAS of PyPI that fit a driver.

libgpuarray passes code of NVRTC (PTX) to the driver, which refuses code of a later version of CUDA than its own with
error 222. cuBLAS contains machine code, which a driver accepts from every release of its own major version.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import DeviceError, UsageError
from pipeline.gpu.driver import Driver, Version, format_version

__all__ = ["OLDEST", "CudaPackages", "choose_packages", "parse_version"]

OLDEST = (12, 0)  # the first version whose NVRTC compiles all kernels of libgpuarray 0.7.6 for cards up to Hopper
_OLDEST_DRIVER = "525.60.13"
_LATEST_MAJOR = 13  # later versions may not support some cards; a driver accepts the code of all earlier versions
_OLDEST_CARD_OF_13 = (7, 5)  # Turing; CUDA 12 contains the last compiler for Volta
_NAMES = ("nvidia-cuda-nvrtc", "nvidia-cublas")


@dataclass(frozen=True)
class CudaPackages:
    """Packages that fit a driver.

    Attributes
    ----------
    requirements : tuple of str
        Requirements of NVRTC and of cuBLAS for pip, which installs the newest versions that meet them.
    why : str
        Reason for these versions, which setup-gpu prints.
    """

    requirements: tuple[str, ...]
    why: str


def choose_packages(driver: Driver | None, requested: Version | None = None) -> CudaPackages:
    """Return the newest NVRTC and cuBLAS for the CUDA version of the driver, or for the requested version.

    Raises
    ------
    DeviceError
        If the driver is older than any package that could be installed.
    """
    if requested is not None:
        why = f"for CUDA {format_version(requested)}, as requested"
        if driver is not None and requested > driver.cuda:
            why += f"; the driver of this machine supports CUDA {format_version(driver.cuda)} or earlier"
        return CudaPackages(_not_newer(requested), why)
    if driver is None:
        # Every driver since 2022 accepts the code of 12.0, and nothing that libgpuarray compiles needs a later one.
        # Blackwell needs a cuBLAS of 12.8 or later.
        nvrtc, _ = _not_newer(OLDEST)
        _, cublas = _not_newer((12, None))
        return CudaPackages((nvrtc, cublas), "for any driver of CUDA 12.0 or later, because no driver was found")
    return _packages_of(driver)


def _packages_of(driver: Driver) -> CudaPackages:
    if driver.cuda < OLDEST:
        raise DeviceError(
            f"{driver.file}: the driver supports CUDA {format_version(driver.cuda)}, expected "
            f"{format_version(OLDEST)} or later. Install NVIDIA's driver {_OLDEST_DRIVER} or later, then run the "
            "same command again."
        )
    why = f"for the driver's CUDA {format_version(driver.cuda)} ({driver.file})"
    oldest_card = min(driver.capabilities, default=_OLDEST_CARD_OF_13)
    if driver.cuda >= (13, 0) and oldest_card < _OLDEST_CARD_OF_13:
        card = f"the card of capability {format_version(oldest_card)}"
        return CudaPackages(_not_newer((12, None)), f"{why}, but packages of CUDA 12: later ones do not support {card}")
    return CudaPackages(_not_newer(driver.cuda), why)


def parse_version(text: str) -> Version:
    """Return the numbers of a version such as ``12.4``.

    Raises
    ------
    UsageError
        If it is not a version, or older than any package that could be installed.
    """
    major, _, minor = text.partition(".")
    if not all(each.isascii() and each.isdigit() and len(each) < 4 for each in (major, minor)):
        raise UsageError(f"{text!r}, expected a version of CUDA, such as 12.4")
    version = int(major), int(minor)
    if version < OLDEST:
        raise UsageError(f"CUDA {text}, expected {format_version(OLDEST)} or later")
    return version


def _not_newer(cuda: tuple[int, int | None]) -> tuple[str, ...]:
    """Return the requirements of both packages; a minor version of None allows all of that major version."""
    major, minor = cuda
    if major > _LATEST_MAJOR:
        major = _LATEST_MAJOR
        minor = None
    end = f"{major + 1}"
    if minor is not None:
        end = f"{major}.{minor + 1}"
    suffix = f"-cu{major}" if major == 12 else ""  # names have no suffix since CUDA 13
    return tuple(f"{name}{suffix}>={major},<{end}" for name in _NAMES)
