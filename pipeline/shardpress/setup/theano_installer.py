"""Installation of Theano 1.0.5 from its source archive, in any supported version of Python.

The archive's own setup program uses two functions of ``configparser`` that Python 3.12 removed. They are provided by a
``sitecustomize`` module, which exists only while the archive is built. Some installed files are then changed, see
`shardpress_kernels.theanofiles`.
"""

from __future__ import annotations

import compileall
import importlib
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from shardpress.base.errors import DeviceError, NotPermitted
from shardpress.base.packages import unsuitable_python, version_of
from shardpress.setup.pip import pip_install
from shardpress_kernels.theanofiles import TheanoDiffers, changed_files, is_set_up, theano_folder

_VERSION = "1.0.5"
_THEANO = f"Theano=={_VERSION} --hash=sha256:6e9439dd53ba995fcae27bf20626074bfc2fff446899dc5c53cb28c1f9202e89\n"
# Builds the archive. Later versions may no longer run its setup program.
_SETUPTOOLS = "setuptools==80.9.0 --hash=sha256:062d34222ad13e0cc312a4c02d73f059e86a4acbfbdea8f8f76b28c99f306922\n"
_SITECUSTOMIZE = """\
import configparser

configparser.SafeConfigParser = configparser.ConfigParser
configparser.ConfigParser.readfp = configparser.ConfigParser.read_file
"""


def set_up(source: Path | None = None) -> Iterator[str]:
    """Install Theano into this environment, change its files, and yield a line of text for each step.

    `source` is a directory with the archive of Theano and the wheel of setuptools. The default is the index in pip's
    settings.
    """
    unsuitable = unsuitable_python()
    if unsuitable:
        raise DeviceError(f"Theano cannot be installed in {sys.executable}: {unsuitable}.")
    folder = sysconfig.get_path("purelib")
    yield f"environment  {sys.prefix}"
    if not is_set_up():
        if not os.access(folder, os.W_OK):
            raise NotPermitted(f"{folder} cannot be written. Use a virtual environment that you own.")
        try:
            _change_files()
        except TheanoDiffers as error:
            if version_of("Theano"):
                yield f"replacing    {error}"
            yield f"installing   Theano {_VERSION} from its source archive (half a minute)"
            _install(source)
            _change_installed_files()
    yield f"Theano       {_VERSION}, with the changes of shardpress"


def _install(source: Path | None) -> None:
    with TemporaryDirectory(prefix="shardpress-theano-") as name:
        folder = Path(name)
        tools = folder / "tools"
        build = folder / "build.txt"
        build.write_text(_SETUPTOOLS)
        target = ("--no-compile", "--require-hashes", "--target", str(tools))
        pip_install("setuptools", *target, "-r", str(build), source=source)
        (tools / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        theano = folder / "theano.txt"
        theano.write_text(_THEANO)
        options = ("--no-deps", "--no-build-isolation", "--require-hashes", "--no-cache-dir", "--force-reinstall")
        pip_install("Theano", *options, "-r", str(theano), source=source, python_path=tools)


def _change_installed_files() -> None:
    """Change the files of a new installation."""
    importlib.invalidate_caches()
    try:
        _change_files()
    except TheanoDiffers as error:
        raise DeviceError(
            f"{error}. pip has just installed this version, so another installation comes first in this Python, or pip "
            "has changed its files. Use a new virtual environment."
        ) from error


def _change_files() -> None:
    """Change the files of Theano. Each one is replaced by a rename, and the one with the mark is the last."""
    folder = theano_folder()
    if folder is None:
        raise TheanoDiffers("Theano is not installed")
    for name, content in changed_files(folder).items():
        path = folder / name
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(content)
        shutil.copymode(path, new)
        os.replace(new, path)
        with warnings.catch_warnings(action="ignore"):  # of old escape sequences
            compileall.compile_file(path, quiet=2)
