"""Build a folder that does the work of `make card` on a machine with only a card and a driver: `make card-kit`.

The folder contains the image of docs/Dockerfile with this checkout and the sample data, split into pieces of 60 MiB,
and a script that joins them. Building needs root, debootstrap and a network; the other machine needs a driver and no
network. PyTorch, which benchmarks need, takes most of the space. `--without-peers` (make card-kit PEERS=no) omits it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.images.image import REPOSITORY, build_image

FOLDER = REPOSITORY / "card-kit"
SCRIPT = Path(__file__).with_name("cardkit.sh")
PIECE = "60m"
CHECKOUT = "usr/src/shardpress"
INSTALL = """
cd /usr/src/shardpress
/opt/shardpress/bin/pip install --no-cache-dir -c constraints.txt --build-constraint constraints.txt \
    -e . pytest pytest-randomly pytest-xdist
rm -rf /var/cache/apt/* /var/lib/apt/lists/* /usr/share/doc/* /usr/share/locale/* /usr/share/man/*
"""
# The last PyTorch built for CUDA 12, so that any driver for CUDA 12.x can run it.
INSTALL_PEERS = """
cd /usr/src/shardpress
/opt/shardpress/bin/python -m venv .venv-peers
.venv-peers/bin/pip install --no-cache-dir numpy 'torch<2.11'
"""


def main() -> None:
    """Build the image, add the checkout, and split the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--without-peers", action="store_true", help="omit PyTorch")
    parser.add_argument(
        "--from", dest="gpu_files", type=Path, metavar="DIR", help="directory with the files for the GPU"
    )
    options = parser.parse_args()
    with TemporaryDirectory(prefix="shardpress-kit-") as folder:
        image = build_image(Path(folder, "root"), "card-kit", options.gpu_files)
        add_checkout(image.root / CHECKOUT)
        image.run("/bin/sh", "-ec", INSTALL)
        if not options.without_peers:
            image.run("/bin/sh", "-ec", INSTALL_PEERS)
        shutil.rmtree(FOLDER, ignore_errors=True)
        FOLDER.mkdir()
        cut(image.root)
    shutil.copy(SCRIPT, FOLDER / "card.sh")
    pieces = sorted(FOLDER.glob("kit.tar.gz.*"))
    size = sum(path.stat().st_size for path in pieces)
    print(f"card-kit: {len(pieces)} pieces, {size / 1e6:.0f} MB; run on the machine with a card: sh card-kit/card.sh")


def add_checkout(place: Path) -> None:
    """Copy the files that git tracks, as they are in the work tree, and the sample data."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    data = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "data").rglob("*.h5")]
    for path in [*map(Path, filter(None, listed.stdout.split("\0"))), *data]:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / path, place / path)


def cut(root: Path) -> None:
    """Split the archive into pieces. The last one may be smaller."""
    outside = ["--exclude=./proc/*", "--exclude=./sys/*", "--exclude=./dev/*", "--exclude=./tmp/*"]
    packed = subprocess.Popen(["tar", "-C", root, *outside, "-cz", "."], stdout=subprocess.PIPE)
    subprocess.run(
        ["split", "-b", PIECE, "-d", "-a", "3", "-", FOLDER / "kit.tar.gz."], stdin=packed.stdout, check=True
    )
    if packed.wait():
        raise RuntimeError("tar failed")


if __name__ == "__main__":
    main()
