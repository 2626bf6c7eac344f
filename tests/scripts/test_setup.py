"""Tests of the choice of Python by scripts/setup.sh, with fake interpreters and a fake apt-get."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.interpreters import REPOSITORY

pytestmark = pytest.mark.process

# Programs of the scripts. There is no compiler, no Python and no apt-get among them.
PROGRAMS = (
    *("awk", "bash", "cat", "chmod", "cp", "dirname", "env", "head", "mkdir", "mktemp", "rm", "sed", "sort", "touch"),
)

# The set-up asks an interpreter for its version, and for its path, and lets it create .venv and install packages.
PYTHON = """#!/bin/sh
case "$1 $2" in
    "- 3."*)
        cat >/dev/null
        if [ "$2" != {version} ]; then echo "is Python {version}" >&2; exit 1; fi
        echo {path}
        ;;
    "-m venv") mkdir -p "$3/bin"; cp {path} "$3/bin/python" ;;
    "-I -c") test -e .venv/pygpu ;;
    "-c import sys; print(sys._base_executable)") echo {path} ;;
    "--version ") echo {version} ;;
esac
"""
APT_GET = """#!/bin/sh
case $* in
    indextargets*) echo https://own.example/debian/ trixie main ;;
    *" download "*) touch python3-pygpu_1_all.deb libgpuarray3_1_all.deb libgpuarray-dev_1_all.deb ;;
    *" source "*) {source} ;;
esac
"""
SOURCES = {
    "archive": "touch libgpuarray_0.7.6.orig.tar.gz",
    "packages": "echo 'E: Failed to fetch the archive  404  Not Found'; echo 'E: and more'; exit 100",
}
# Downloads are those of the real script. Nothing is unpacked.
INSTALL_PYGPU = """#!/bin/sh
case ${{1:-}} in
    --download) exec {script} "$@" ;;
    --from) test -e "$2"/python3-pygpu_1_all.deb && touch .venv/pygpu ;;
esac
"""


def add(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def make_machine(folder: Path, offered: str, versions: list[str]) -> None:
    """Make a checkout and fake programs; apt-get offers the packages of pygpu, also the source archive, or nothing."""
    scripts = folder / "checkout/scripts"
    scripts.mkdir(parents=True)
    shutil.copy(REPOSITORY / "scripts/setup.sh", scripts)
    add(scripts / "install_pygpu.sh", INSTALL_PYGPU.format(script=REPOSITORY / "scripts/install_pygpu.sh"))
    programs = folder / "bin"
    programs.mkdir()
    for program in PROGRAMS:
        (programs / program).symlink_to(shutil.which(program) or "")
    add(programs / "g++", "")
    add(programs / "id", "#!/bin/sh\necho 1000\n")  # only root installs packages
    for version in versions:
        path = programs / f"python{version}"
        add(path, PYTHON.format(version=version, path=path))
    if offered != "nothing":
        add(programs / "apt-get", APT_GET.format(source=SOURCES[offered]))


def set_up(folder: Path) -> tuple[str, str]:
    """Run the script. Return the line that it prints about Python, and the version of Python of .venv."""
    env = {"PATH": str(folder / "bin"), "HOME": str(folder)}
    script = folder / "checkout/scripts/setup.sh"
    done = subprocess.run([script], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("setup: Python ")]
    version = subprocess.check_output([folder / "checkout/.venv/bin/python", "--version"], text=True)
    return line, version.strip()


@pytest.mark.parametrize(
    ("offered", "versions", "chosen", "has_pygpu"),
    [
        ("archive", ["3.11", "3.13"], "3.13", True),
        ("packages", ["3.11", "3.13"], "3.11", True),
        ("packages", ["3.12", "3.13"], "3.13", False),
        ("nothing", ["3.11", "3.13"], "3.13", False),
    ],
)
def test_newest_python_with_pygpu_is_chosen_and_kept(
    tmp_path: Path, offered: str, versions: list[str], chosen: str, has_pygpu: bool
) -> None:
    make_machine(tmp_path, offered, versions)
    line, version = set_up(tmp_path)
    assert chosen in line
    assert version == chosen
    # The reason is the first error of apt-get.
    assert ("404" in line) == (offered == "packages")
    assert ("no apt-get" in line) == (offered == "nothing")
    venv = tmp_path / "checkout/.venv"
    assert (venv / "pygpu").exists() == has_pygpu
    (venv / "kept").touch()
    if has_pygpu:
        (tmp_path / "bin/apt-get").unlink()
    assert set_up(tmp_path)[1] == chosen
    assert (venv / "kept").exists()
