"""Tests of the choice of Python by scripts/setup.sh, with fake interpreters and a fake apt-get."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
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
echo "$*" >>{calls}
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


@dataclass(frozen=True)
class Machine:
    """A checkout on a machine with fake programs, in the only folder in ``PATH``."""

    checkout: Path
    programs: Path

    def add(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)

    def add_pythons(self, *versions: str) -> None:
        for version in versions:
            path = self.programs / f"python{version}"
            self.add(path, PYTHON.format(version=version, path=path))

    def offer(self, offered: str) -> None:
        """Let apt-get download the packages of pygpu ("packages"), also the source archive ("archive"), or nothing."""
        if offered == "nothing":
            (self.programs / "apt-get").unlink(missing_ok=True)
        else:
            self.add(self.programs / "apt-get", APT_GET.format(calls=self.checkout / "calls", source=SOURCES[offered]))

    def set_up(self, **variables: str) -> str:
        """Run the script, and return what it prints about Python, which must be one line."""
        (self.checkout / "calls").write_text("")
        env = {"PATH": str(self.programs), "HOME": str(self.checkout), **variables}
        script = self.checkout / "scripts/setup.sh"
        done = subprocess.run([script], env=env, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("setup: Python ")]
        return line

    @property
    def version(self) -> str:
        """The version of Python of .venv."""
        python = self.checkout / ".venv/bin/python"
        return subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    @property
    def has_pygpu(self) -> bool:
        return (self.checkout / ".venv/pygpu").exists()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "checkout", tmp_path / "bin")
    scripts = machine.checkout / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(REPOSITORY / "scripts/setup.sh", scripts)
    machine.add(scripts / "install_pygpu.sh", INSTALL_PYGPU.format(script=REPOSITORY / "scripts/install_pygpu.sh"))
    machine.programs.mkdir()
    for program in PROGRAMS:
        (machine.programs / program).symlink_to(shutil.which(program) or "")
    machine.add(machine.programs / "g++", "")
    machine.add(machine.programs / "id", "#!/bin/sh\necho 1000\n")  # only root installs packages
    return machine


@pytest.mark.parametrize(
    ("offered", "versions", "chosen", "has_pygpu"),
    [
        ("archive", ["3.11", "3.13"], "3.13", True),
        ("packages", ["3.11", "3.13"], "3.11", True),
        ("packages", ["3.12", "3.13"], "3.13", False),
        ("nothing", ["3.11", "3.13"], "3.13", False),
    ],
)
def test_newest_python_with_pygpu_is_chosen(
    machine: Machine, offered: str, versions: list[str], chosen: str, has_pygpu: bool
) -> None:
    machine.add_pythons(*versions)
    machine.offer(offered)
    line = machine.set_up()
    assert chosen in line
    assert (machine.version, machine.has_pygpu) == (chosen, has_pygpu)
    # The reason is the first error of apt-get.
    assert ("404" in line) == (offered == "packages")
    assert ("no apt-get" in line) == (offered == "nothing")


def test_python_is_replaced_only_by_one_that_can_have_pygpu(machine: Machine) -> None:
    """Python with pygpu is kept without a network."""
    machine.add_pythons("3.11", "3.13")
    kept = machine.checkout / ".venv/kept"
    machine.set_up()
    kept.touch()
    machine.set_up()
    assert (machine.version, kept.exists()) == ("3.13", True)
    machine.offer("packages")
    machine.set_up()
    assert (machine.checkout / "calls").read_text() != ""
    assert (machine.version, machine.has_pygpu, kept.exists()) == ("3.11", True, False)
    kept.touch()
    machine.offer("archive")
    machine.set_up()
    machine.set_up(PYTHON="3.11")
    assert (machine.checkout / "calls").read_text() == ""
    assert (machine.version, kept.exists()) == ("3.11", True)
