"""`shardpress setup-gpu`: install the libraries that a CUDA card needs in addition to its driver."""

from __future__ import annotations

import argparse

from shardpress.commands.parsing import existing_directory
from shardpress.setup.cuda_packages import parse_version

DESCRIPTION = """Install the libraries that a CUDA card needs in addition to NVIDIA's driver: pygpu, NVRTC and cuBLAS.

    shardpress setup-gpu
    shardpress setup-gpu --for 12.4        on a machine without a driver, such as an image or a login node
    shardpress setup-gpu --from DIR        without a network

The newest versions that the driver accepts are installed into this Python environment. Root permissions, a CUDA toolkit
and environment variables are not needed. Run the command again after an update of the driver, or if it was interrupted.
docs/gpu.md describes Debian, Ubuntu, conda and containers.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for",
        dest="cuda",
        metavar="CUDA",
        type=parse_version,
        help="Install for this version of CUDA, for example 12.4. Default: the version of the driver.",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="DIR",
        type=existing_directory,
        help="Use the wheels and Debian packages in this directory, and no network.",
    )
    parser.add_argument("--mirror", metavar="ADDRESS", help="Debian mirror for pygpu, if apt has no source with it.")


def run(options: argparse.Namespace) -> int:
    """Install the libraries, and print a line for each step."""
    import shardpress.setup.installed  # noqa: F401  it exits with a message if this Python cannot run Theano
    from shardpress.setup.install import set_up

    for line in set_up(options.cuda, options.source, options.mirror):
        print(line, flush=True)
    print("next         THEANO_FLAGS=device=cuda shardpress doctor")
    return 0
