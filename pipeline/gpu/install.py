"""The steps of set-up for a CUDA card. Each does what is missing: done again, they mend what was left half done."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from pipeline.errors import DeviceError, NotPermitted
from pipeline.gpu.driver import Version, find_driver
from pipeline.gpu.fitting import fitting
from pipeline.gpu.libraries import installed, is_whole, place, unpack

__all__ = ["Wanted", "set_up"]

_SCRIPT = "install_pygpu.sh"


@dataclass(frozen=True)
class Wanted:
    """What whoever types it may say.

    Attributes
    ----------
    cuda : tuple of int, optional
        The version of CUDA to install for, in place of this machine's driver's.
    source : Path, optional
        A folder with all wheels and Debian's packages, in place of any network.
    mirror : str, optional
        Where Debian's packages come from, in place of this machine's own source.
    """

    cuda: Version | None = None
    source: Path | None = None
    mirror: str | None = None


def set_up(wanted: Wanted) -> Iterator[str]:
    """Install into this environment, step by step, and say of each in a line what there is now.

    Raises
    ------
    DeviceError
        When something cannot be had.
    NotPermitted
        When the environment is somebody else's.
    """
    environment = Path(sys.prefix)
    if not os.access(environment / "lib", os.W_OK):
        raise NotPermitted(f"{environment / 'lib'} cannot be written, expected a virtual environment of one's own")
    fits = fitting(find_driver(), wanted.cuda)  # before anything is installed: it may be that nothing fits
    yield f"environment  {environment}"
    yield f"CUDA         {fits.why}"
    _install_pygpu(environment, wanted)
    yield f"pygpu        {version('pygpu')}, with libgpuarray"
    folder = place(environment)
    if not is_whole(folder, fits.requirements):
        yield f"installing   {' and '.join(fits.requirements)}: hundreds of megabytes"
        unpack(folder, fits.requirements, wanted.source)
    names = " and ".join(f"{name} {number}" for name, number in sorted(installed(folder).items()))
    yield f"libraries    {names}, in {folder}"
    yield from _warnings()


def _install_pygpu(environment: Path, wanted: Wanted) -> None:
    """By the script, which can do it without any of this."""
    options: list[str | Path] = []
    if wanted.source is not None:
        options += ["--from", wanted.source]
    if wanted.mirror is not None:
        options += ["--mirror", wanted.mirror]
    done = subprocess.run([_script(), *options, environment], stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise DeviceError("pygpu could not be installed: the lines above say why.")


def _script() -> Path:
    """The checkout's, or the one that a wheel has put beside `shardpress`."""
    folders = (Path(__file__).resolve().parents[2] / "scripts", Path(sysconfig.get_path("scripts")))
    return next((folder / _SCRIPT for folder in folders if (folder / _SCRIPT).exists()), Path(_SCRIPT))


def _warnings() -> Iterator[str]:
    """Of what comes before our own libraries when a process is started as this one was."""
    for folder in filter(None, os.environ.get("LD_LIBRARY_PATH", "").split(":")):
        if any(Path(folder, f"lib{name}.so").exists() for name in ("cuda", "nvrtc", "cublas")):
            yield f"warning      LD_LIBRARY_PATH has libraries in {folder} that come before these: take it out"
