"""Choice of the NVRTC and cuBLAS packages on PyPI that fit a driver.

NVRTC generates PTX code, which libgpuarray passes to the driver. A driver rejects PTX code of a later CUDA version than
its own with error 222. cuBLAS contains machine code, and a driver accepts it from all releases of its major version.
"""

from __future__ import annotations

from dataclasses import dataclass

from shardpress.errors import DeviceError, UsageError
from shardpress.gpu.driver import Driver, Version, format_version

_OLDEST = (12, 0)  # earliest version whose NVRTC compiles all kernels of libgpuarray 0.7.6 for cards up to Hopper
_OLDEST_DRIVER = "525.60.13"
_LATEST_MAJOR = 13  # later versions may not support some cards; drivers accept the code of all earlier versions
_OLDEST_CARD_OF_13 = (7, 5)  # Turing; CUDA 12 is the last version that supports Volta
_NAMES = ("nvidia-cuda-nvrtc", "nvidia-cublas")


@dataclass(frozen=True)
class _CudaPackages:
    """Packages that fit a driver.

    Attributes
    ----------
    requirements : tuple of str
        Requirements of NVRTC and cuBLAS. pip installs the newest versions that meet them.
    why : str
        Reason for the choice, which setup-gpu prints.
    """

    requirements: tuple[str, ...]
    why: str


def choose_packages(driver: Driver | None, requested: Version | None = None) -> _CudaPackages:
    """Return the newest packages for the requested CUDA version, or for the version of the driver by default.

    Raises
    ------
    DeviceError
        If the driver is too old for every package.
    """
    if requested is not None:
        why = f"for CUDA {format_version(requested)}, as requested"
        if driver is not None and requested > driver.cuda:
            why += f"; the driver of this machine supports CUDA {format_version(driver.cuda)} or earlier"
        return _CudaPackages(_not_newer(requested), why)
    if driver is None:
        # All drivers since 2022 accept the code of CUDA 12.0, and libgpuarray does not need a later NVRTC. Blackwell
        # cards need cuBLAS 12.8 or later.
        nvrtc, _ = _not_newer(_OLDEST)
        _, cublas = _not_newer((12, None))
        return _CudaPackages((nvrtc, cublas), "for any driver of CUDA 12.0 or later, because no driver was found")
    return _packages_of(driver)


def _packages_of(driver: Driver) -> _CudaPackages:
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
        return _CudaPackages(
            _not_newer((12, None)), f"{why}, but packages of CUDA 12, because later packages do not support {card}"
        )
    return _CudaPackages(_not_newer(driver.cuda), why)


def parse_version(text: str) -> Version:
    """Parse a CUDA version such as ``12.4``.

    Raises
    ------
    UsageError
        If the text is not a version, or if the version is too old for every package.
    """
    major, _, minor = text.partition(".")
    if not all(each.isascii() and each.isdigit() and len(each) < 4 for each in (major, minor)):
        raise UsageError(f"{text!r}, expected a version of CUDA, such as 12.4")
    version = int(major), int(minor)
    if version < _OLDEST:
        raise UsageError(f"CUDA {text}, expected {format_version(_OLDEST)} or later")
    return version


def _not_newer(cuda: tuple[int, int | None]) -> tuple[str, ...]:
    """Return requirements that exclude packages for later CUDA versions.

    If the minor version is None, all minor versions of the major version are allowed.
    """
    major, minor = cuda
    if major > _LATEST_MAJOR:
        major = _LATEST_MAJOR
        minor = None
    end = f"{major + 1}"
    if minor is not None:
        end = f"{major}.{minor + 1}"
    suffix = f"-cu{major}" if major == 12 else ""  # since CUDA 13, names have no suffix
    return tuple(f"{name}{suffix}>={major},<{end}" for name in _NAMES)
