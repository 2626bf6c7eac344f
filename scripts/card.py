"""Test shardpress on a machine with a CUDA card: doctor, tests, a run, a comparison, and one page of results.

    make card                                     into card/NAME OF THE CARD/, in at most nine minutes
    .venv/bin/python scripts/card.py --quick      small sizes, a fraction of the data, one epoch

The output of each step is written to its own file, and card.md lists the exit codes. Run the command again to repeat
only the steps that failed or were stopped by the time limit. No step needs a network: without the data of `make run`,
the run uses scikit-learn's digits.
"""

import sys
from pathlib import Path

# So that any Python finds the modules below.
sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("pipeline", "kernels")]
import shardpress.setup.installed  # noqa: F401  ends the process with a message if packages are missing

# isort: split

# Only now, because the checkout lists the requirements of the package, which this Python may not have.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import argparse
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO

from scripts.benchmarks.harness import PEERS

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/kernels/test_card.py", "tests/kernels/test_devices.py")
NAME = "from shardpress_kernels import backend; print(backend.start(require=True).name)"
_LAST_LINES = 12  # lines of each step's output on the page

Step = tuple[Sequence[object], Mapping[str, str]]
"""Arguments of Python, and additional environment variables."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the remaining steps, write the page, and return 0, 1 if a step failed, or 75 after the time limit."""
    options = parse(argv)
    end = time.monotonic() + options.seconds
    name = name_of(options.device)
    folder = options.output / re.sub(r"\W+", "-", name)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {folder}/", flush=True)
    todo = steps(folder, options.device, options.quick)
    codes = [run_step(folder, step, command, variables, end) for step, (command, variables) in todo.items()]
    (folder / "card.md").write_text(page(name, folder, list(todo)))
    print(f"written to {folder}/card.md")
    if None in codes:
        print("The time limit was reached. Run the same command again to resume.")
        return 75
    return int(any(codes))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda", help="name of the device in Theano, for example cuda1 (default: %(default)s)")
    add("--output", type=Path, default=Path("card"), help="parent directory of the results (default: %(default)s)")
    add("--seconds", type=float, default=540, help="time limit of this call (default: %(default)s)")
    add("--quick", action="store_true", help="smaller sizes, fewer rounds")
    return parser.parse_args(argv)


def name_of(device: str) -> str:
    """Return the name of the card, which a child process reads."""
    env = {**os.environ, **theano_on(device)}
    done = subprocess.run([sys.executable, "-c", NAME], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1].partition(": ")[2]  # after the name of the exception
        sys.exit(f"card: {device} does not start: {reason}. To find the cause, run: shardpress doctor")
    return done.stdout.strip().splitlines()[-1]


def theano_on(device: str) -> dict[str, str]:
    """Return the environment that chooses a device."""
    return {"THEANO_FLAGS": f"device={device}"}


def steps(folder: Path, device: str, quick: bool) -> dict[str, Step]:
    """Return the steps in order; later ones need the results of earlier ones."""
    on_card = theano_on(device)
    on_cpu = theano_on("cpu")
    train, test = inputs(quick)
    features = folder / "features"
    encoded = folder / "features-test"
    cpu_features = folder / "features-cpu"
    extract = ("scripts/extract.py", "--overwrite", "--input")
    epochs = ("--epochs", 1) if quick else ()
    return {
        "doctor": (("scripts/doctor.py", "--json"), on_card),
        "tests": (("-m", "pytest", *TESTS), {"TEST_CARD": "quick" if quick else "full"}),
        "data": (("scripts/make_data.py", "digits"), {}),
        "train": ((*extract, train, "--output", features, "--require-device", *epochs), on_card),
        "encode": ((*extract, test, "--output", encoded, "--model", features, "--require-device"), on_card),
        "classify": (("scripts/classify.py", features, "--test", encoded), on_cpu),
        "cpu": ((*extract, train, "--output", cpu_features, "--model", features), on_cpu),
        "agree": (("-m", "tests.support.compare_features", features, cpu_features, device), {}),
        "compare": ((*comparison(device, quick), "--output", folder / "bench"), {}),
    }


def inputs(quick: bool) -> tuple[str, str]:
    """Return the training shards and the test shards."""
    if quick or not (ROOT / "data/fashion-mnist-test").exists():
        return "data/digits/digits-train-*.h5", "data/digits/digits-test"
    return "data/fashion-mnist-train-*.h5", "data/fashion-mnist-test"


def comparison(device: str, quick: bool) -> list[str]:
    """Return the command of the speed comparison."""
    command = ["scripts/benchmarks/run.py", "compare", "device", "--device", device]
    if not PEERS.exists():
        command.append("--without-peers")
    if quick:
        command.append("--quick")
    return command


def run_step(
    folder: Path, name: str, command: Sequence[object], variables: Mapping[str, str], end: float
) -> int | None:
    """Run a step unless it has succeeded before; return its exit code, or None after the time limit."""
    record = folder / f"{name}.json"
    if record.exists() and json.loads(record.read_text())["code"] == 0:
        print(f"{name}: done before", flush=True)
        return 0
    record.unlink(missing_ok=True)
    start = time.monotonic()
    words = [sys.executable, *map(str, command)]
    with (folder / f"{name}.log").open("w") as log:
        code = run_until(words, {**os.environ, **variables}, log, end)
    seconds = time.monotonic() - start
    if code is None:
        print(f"{name}: stopped by the time limit, {seconds:.0f} s", flush=True)
        return None
    record.write_text(json.dumps({"command": words[1:], "seconds": seconds, "code": code}) + "\n")
    print(f"{name}: exit code {code}, {seconds:.0f} s", flush=True)
    return code


def run_until(words: Sequence[str], env: Mapping[str, str], log: IO[str], end: float) -> int | None:
    """Run a command; return its exit code. After the time limit, kill its process group and return None."""
    if end <= time.monotonic():
        return None
    process = subprocess.Popen(words, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        return process.wait(end - time.monotonic())
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def page(name: str, folder: Path, names: Sequence[str]) -> str:
    """Return the page, which shows how each step ended and the last lines of its output."""
    lines = [f"# {name}", "", "| step | seconds | exit code |", "|---|---|---|"]
    logs: list[str] = []
    for step in names:
        record = folder / f"{step}.json"
        found = {"seconds": 0, "code": "not done"}
        if record.exists():
            found = json.loads(record.read_text())
        lines.append(f"| {step} | {found['seconds']:.0f} | {found['code']} |")
        output = (folder / f"{step}.log").read_text(errors="replace").splitlines()
        logs += ["", f"## {step}", "", *(f"    {line}" for line in output[-_LAST_LINES:])]
    return "\n".join([*lines, *logs]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
