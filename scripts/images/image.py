"""Run the steps of docs/Dockerfile in a chroot of a plain Debian and test the result: `make image-check`.

This needs root, debootstrap and a network. Only the kinds of steps that this Dockerfile contains are supported.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory

import h5py
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = REPOSITORY / "docs/Dockerfile"
SUITES = {"debian:13": "trixie"}
# Use a private mount namespace, so that nothing stays mounted.
CHROOT = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
# Settings of this machine's package sources, for pip in the chroot.
NETWORK = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT")
CERTIFICATES = "etc/certificates-of-the-machine.crt"


def steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the arguments of each step. Continuation lines are joined."""
    lines = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
    for line in filter(None, lines.splitlines()):
        name, _, arguments = line.partition(" ")
        yield name, arguments.strip()


def mirror() -> str:
    """Return the Debian mirror of this machine."""
    form = "$(REPO_URI) $(COMPONENT)"
    command = ["apt-get", "indextargets", "--no-release-info", "--format", form, "Created-By: Packages"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return next(line.split()[0] for line in lines if line.endswith(" main"))


class Image:
    """A folder that becomes the image.

    Parameters
    ----------
    root : Path
        New folder.
    gpu_files : Path, optional
        Directory with the files for the GPU. By default they are downloaded.
    """

    def __init__(self, root: Path, gpu_files: Path | None = None) -> None:
        self.root = root
        self.gpu_files = gpu_files
        self.environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self.arguments: dict[str, str] = {}
        self.folder = "/"
        self.entrypoint: list[str] = []

    def do(self, name: str, arguments: str) -> None:
        """Execute one step."""
        print(f"{name} {arguments}", flush=True)
        if name == "FROM":
            subprocess.run(["debootstrap", "--variant=minbase", SUITES[arguments], self.root, mirror()], check=True)
            self._connect()
        elif name in ("ARG", "ENV"):
            key, _, value = arguments.partition("=")
            values = self.arguments if name == "ARG" else self.environment
            values[key] = Template(value).substitute(self.environment)
            if key == "SETUP_GPU" and self.gpu_files:
                shutil.copytree(self.gpu_files, self.root / "tmp/gpu-files")
                values[key] = "--from /tmp/gpu-files"
        elif name == "COPY":
            self._copy(*arguments.split())
        elif name == "RUN":
            self.run("/bin/sh", "-c", arguments, **self.arguments)
        elif name == "WORKDIR":
            self.folder = arguments
            (self.root / arguments.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif name == "ENTRYPOINT":
            self.entrypoint = json.loads(arguments)
        else:
            raise NotImplementedError(f"{DOCKERFILE}: {name} {arguments}")

    def run(self, *command: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a program in the image and print its output."""
        words = [f"{key}={value}" for key, value in {**self.environment, **self._network(), **variables}.items()]
        inside = ["/usr/bin/env", "-i", f"--chdir={self.folder}", *words, *command]
        outside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", CHROOT, str(self.root)]
        result = subprocess.run([*outside, *inside], stdout=subprocess.PIPE, text=True, check=check)
        print(result.stdout, end="", flush=True)
        return result

    def _copy(self, *paths: str) -> None:
        *sources, target = paths
        place = self.root / target.lstrip("/")
        for source in (REPOSITORY / each for each in sources):
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)

    def _connect(self) -> None:
        shutil.copy("/etc/resolv.conf", self.root / "etc/resolv.conf")
        if certificates := os.environ.get("PIP_CERT"):
            shutil.copy(certificates, self.root / CERTIFICATES)

    def _network(self) -> Mapping[str, str]:
        found = {name: os.environ[name] for name in NETWORK if name in os.environ}
        return found | ({"PIP_CERT": f"/{CERTIFICATES}"} if (self.root / CERTIFICATES).exists() else {})


def build_image(root: Path, target: str, gpu_files: Path | None = None) -> Image:
    """Build the image of docs/Dockerfile in a new folder."""
    if os.geteuid() or shutil.which("debootstrap") is None:
        sys.exit(f"{target}: needs root, and debootstrap (Debian: apt-get install debootstrap)")
    image = Image(root, gpu_files)
    for name, arguments in steps(DOCKERFILE.read_text()):
        image.do(name, arguments)
    return image


def main() -> None:
    """Build the image, and run the program in it without a driver."""
    gpu_files = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with TemporaryDirectory(prefix="shardpress-image-") as folder:
        image = build_image(Path(folder, "root"), "image-check", gpu_files)
        print("Content:", flush=True)
        again = image.run(*image.entrypoint, "setup-gpu", *image.arguments["SETUP_GPU"].split())
        assert "no driver was found" in again.stdout, again.stdout
        doctor = image.run(*image.entrypoint, "doctor", check=False)
        assert doctor.returncode == 1, "the requested device does not exist"
        assert "no NVIDIA driver" in doctor.stdout
        work = image.root / image.folder.lstrip("/")
        (work / "shards").mkdir()
        with h5py.File(work / "shards/x.h5", "w") as file:
            file["X"] = np.random.default_rng(0).normal(size=(400, 12))
        run = image.run(*image.entrypoint, "run", "--input", "shards", "--epochs", "1", "--quiet")
        assert "instead of cuda: no NVIDIA driver was found" in run.stdout
        assert (work / "features/index.h5").exists()
    print("image-check: done; docs/Dockerfile builds a working image.")


if __name__ == "__main__":
    main()
