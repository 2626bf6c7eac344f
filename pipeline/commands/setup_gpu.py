"""`shardpress setup-gpu`: install the libraries that a CUDA card needs in addition to its driver."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.errors import UsageError

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Install what a CUDA card needs beside NVIDIA's driver: pygpu, and NVRTC and cuBLAS as new as it takes.

    shardpress setup-gpu
    shardpress setup-gpu --for 12.4        on a machine without the driver: an image, a login node
    shardpress setup-gpu --from FOLDER     without any network

No root, no CUDA toolkit, no environment variable. Everything goes into this environment; type it again when the driver
has been updated, or this was interrupted. docs/gpu.md: on Debian, on Ubuntu, with conda, in a container.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--for", dest="cuda", metavar="CUDA", type=_version, help="a version of CUDA, like 12.4 (default: the driver's)"
    )
    parser.add_argument("--from", dest="source", metavar="DIR", type=_folder, help="where all wheels and packages lie")
    parser.add_argument("--mirror", metavar="ADDRESS", help="of Debian, for pygpu, where apt's own source has none")


def run(options: argparse.Namespace) -> int:
    """Install the libraries, and print each step."""
    import pipeline.installed  # noqa: F401  it exits with a message if this Python cannot run Theano
    from pipeline.gpu.install import SetupOptions, set_up

    for line in set_up(SetupOptions(options.cuda, options.source, options.mirror)):
        print(line, flush=True)
    print("next         THEANO_FLAGS=device=cuda shardpress doctor")
    return 0


def _version(text: str) -> tuple[int, int]:
    from pipeline.gpu.fitting import parse_version

    try:
        return parse_version(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a folder")
    return Path(text).absolute()
