"""Which NVRTC and cuBLAS of PyPI fit a driver.

libgpuarray hands its driver the code that NVRTC writes (PTX), and a driver refuses code of a later CUDA than its own
with error 222. Machine code, which is what cuBLAS holds, it takes from every release of its own major version.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import DeviceError, UsageError
from pipeline.gpu.driver import Driver, Version

__all__ = ["OLDEST", "Fitting", "fitting", "parse_version"]

OLDEST = (12, 0)  # the first whose NVRTC compiles every kernel that libgpuarray 0.7.6 asks for up to Hopper
_OLDEST_DRIVER = "525.60.13"
_LATEST_MAJOR = 13  # what a later one no longer compiles is not known; a driver takes the code of all earlier ones
_OLDEST_CARD_OF_13 = (7, 5)  # Turing: for Volta there is no compiler after 12
_NAMES = ("nvidia-cuda-nvrtc", "nvidia-cublas")


@dataclass(frozen=True)
class Fitting:
    """What fits.

    Attributes
    ----------
    requirements : tuple of str
        NVRTC's and cuBLAS's, as pip reads them; it takes the newest that meets them.
    why : str
        Why these, for whoever reads what set-up says.
    """

    requirements: tuple[str, ...]
    why: str


def fitting(driver: Driver | None, asked: Version | None = None) -> Fitting:
    """The newest NVRTC and cuBLAS that are not newer than the CUDA of the driver, or than the one that was asked for.

    Raises
    ------
    DeviceError
        When the driver is older than anything that could be installed.
    """
    if asked is not None:
        late = driver is not None and asked > driver.cuda
        beside = f"; the driver here takes code of CUDA {_dotted(driver.cuda)} at most" if driver and late else ""
        return Fitting(_not_newer(asked), f"for CUDA {_dotted(asked)}, as asked for{beside}")
    if driver is None:
        # The code of 12.0 is taken by every driver since 2022, and nothing that libgpuarray compiles needs a later one.
        # Blackwell needs a cuBLAS of 12.8 or later.
        (nvrtc, _), (_, cublas) = _not_newer(OLDEST), _not_newer((12, None))
        return Fitting((nvrtc, cublas), "no driver here, so what every driver of CUDA 12.0 or later takes")
    if driver.cuda < OLDEST:
        raise DeviceError(
            f"{driver.file}: the driver takes code of CUDA {_dotted(driver.cuda)}, expected {_dotted(OLDEST)} or more. "
            f"Install NVIDIA's driver {_OLDEST_DRIVER} or later, then type the same command again."
        )
    its = f"for the driver's CUDA {_dotted(driver.cuda)} ({driver.file})"
    oldest_card = min(driver.capabilities, default=_OLDEST_CARD_OF_13)
    if driver.cuda >= (13, 0) and oldest_card < _OLDEST_CARD_OF_13:
        card = f"the card of capability {_dotted(oldest_card)}"
        return Fitting(_not_newer((12, None)), f"{its}, but of CUDA 12: later ones do not compile for {card}")
    return Fitting(_not_newer(driver.cuda), its)


def parse_version(text: str) -> Version:
    """``12.4`` as numbers.

    Raises
    ------
    UsageError
        When it is no version, or older than anything that could be installed.
    """
    major, _, minor = text.partition(".")
    if not all(each.isascii() and each.isdigit() and len(each) < 4 for each in (major, minor)):
        raise UsageError(f"{text!r}, expected a version of CUDA, such as 12.4")
    version = int(major), int(minor)
    if version < OLDEST:
        raise UsageError(f"CUDA {text}, expected {_dotted(OLDEST)} or later")
    return version


def _not_newer(cuda: tuple[int, int | None]) -> tuple[str, ...]:
    """Both packages' requirements; with a minor version of None, of that major version whatever the minor one."""
    major, minor = cuda
    if major > _LATEST_MAJOR:
        major, minor = _LATEST_MAJOR, None
    below = f"{major + 1}" if minor is None else f"{major}.{minor + 1}"
    suffix = f"-cu{major}" if major == 12 else ""  # from 13 on the names have none
    return tuple(f"{name}{suffix}>={major},<{below}" for name in _NAMES)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
