"""Settle on a machine with a CUDA card what no other can: doctor, tests, a whole run, races, and one page of it all.

    make card                                     into card/NAME OF THE CARD/, in nine minutes at most
    .venv/bin/python scripts/card.py --quick      small sizes, a fraction of the data, one epoch

Each step's output lies in a file of its own there, and card.md has how each ended. A step that has ended well is not
done again, and one that was cut off or has failed is: typed again, it goes on where it was. Nothing is taken from a
network: without the rows of `make run` it takes scikit-learn's digits.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where any Python finds what the next line names
import pipeline.installed  # noqa: F401  which ends with a sentence what cannot go on

# isort: split

import argparse
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO

from scripts.benchmarks.race import PEERS

ROOT = Path(__file__).resolve().parents[1]
TESTS = ("tests/kernels/test_card.py", "tests/kernels/test_devices.py")
NAME = "from kernels import backend; print(backend.start(require=True).name)"
_LAST = 12  # lines of a step on the page

Step = tuple[Sequence[object], Mapping[str, str]]
"""A command behind this Python, and what its environment has beside ours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is not done yet, write the page, and return 0, 1 where a step failed, or 75 where the time was over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="in Theano's words, like cuda1 (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("card"), help="where the folder goes (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=540, help="for this call (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, fewer rounds")
    options = parser.parse_args(argv)
    end = time.monotonic() + options.seconds
    name = name_of(options.device)
    folder = options.output / re.sub(r"\W+", "-", name)
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{name}: {folder}/", flush=True)
    todo = steps(folder, options.device, options.quick)
    codes = [done(folder, step, command, variables, end) for step, (command, variables) in todo.items()]
    (folder / "card.md").write_text(page(name, folder, [*todo]))
    print(f"written to {folder}/card.md")
    if None in codes:
        print("The time was over: type the same command again to go on.")
        return 75
    return int(any(codes))


def name_of(device: str) -> str:
    """The card's, from a process that opens it."""
    command = [sys.executable, "-c", NAME]
    env = {**os.environ, **theano(device)}
    told = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    if told.returncode:
        why = told.stderr.strip().splitlines()[-1].partition(": ")[2]  # behind the exception's name
        sys.exit(f"card: {device} does not start: {why}. What to mend says: shardpress doctor")
    return told.stdout.strip().splitlines()[-1]


def theano(device: str) -> dict[str, str]:
    """The variable that names it."""
    return {"THEANO_FLAGS": f"device={device}"}


def steps(folder: Path, device: str, quick: bool) -> dict[str, Step]:
    """What is done, in its order: each stands on those before it."""
    on_card = theano(device)
    on_cpu = theano("cpu")
    features, encoded, same = (folder / each for each in ("features", "features-test", "features-cpu"))
    train = "data/fashion-mnist-train-*.h5"
    test = "data/fashion-mnist-test"
    if quick or not (ROOT / test).exists():
        train, test = (f"data/digits/{each}" for each in ("digits-train-*.h5", "digits-test"))
    run = ("scripts/extract.py", "--overwrite", "--input")
    less = ("--epochs", 1) if quick else ()
    races = ("scripts/benchmarks/run.py", "races", "device")
    peers = () if PEERS.exists() else ("--without-peers",)
    small = ("--quick",) if quick else ()
    return {
        "doctor": (("scripts/doctor.py", "--json"), on_card),
        "tests": (("-m", "pytest", *TESTS), {"TEST_CARD": "quick" if quick else "full"}),
        "data": (("scripts/make_data.py", "digits"), {}),
        "train": ((*run, train, "--output", features, "--require-device", *less), on_card),
        "encode": ((*run, test, "--output", encoded, "--model", features, "--require-device"), on_card),
        "classify": (("scripts/classify.py", "--features", features, "--test", encoded), on_cpu),
        "cpu": ((*run, train, "--output", same, "--model", features), on_cpu),
        "agree": (("-m", "tests.support.agree", features, same, device), {}),
        "races": ((*races, "--device", device, *peers, *small, "--output", folder / "bench"), {}),
    }


def done(folder: Path, name: str, command: Sequence[object], variables: Mapping[str, str], end: float) -> int | None:
    """Do a step unless it has ended well; its exit code, or None where the time was over."""
    record = folder / f"{name}.json"
    left = end - time.monotonic()
    if record.exists() and json.loads(record.read_text())["code"] == 0:
        print(f"{name}: done before", flush=True)
        return 0
    record.unlink(missing_ok=True)
    start = time.monotonic()
    code = None
    words = [sys.executable, *map(str, command)]
    with (folder / f"{name}.log").open("w") as output:
        if left > 0:
            code = ended(words, {**os.environ, **variables}, output, left)
    seconds = time.monotonic() - start
    if code is not None:
        record.write_text(json.dumps({"command": words[1:], "seconds": seconds, "code": code}) + "\n")
    print(f"{name}: {'cut off' if code is None else f'exit code {code}'}, {seconds:.0f} s", flush=True)
    return code


def ended(words: Sequence[str], env: Mapping[str, str], output: IO[str], seconds: float) -> int | None:
    """A command's exit code; or None behind so many seconds, when nothing that it has started is left on the card."""
    process = subprocess.Popen(
        words, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def page(name: str, folder: Path, names: Sequence[str]) -> str:
    """How each step ended, and the last lines of what it said."""
    head = [f"# {name}", "", "| step | seconds | exit code |", "|---|---|---|"]
    logs = list[str]()
    for step in names:
        record = folder / f"{step}.json"
        found = json.loads(record.read_text()) if record.exists() else {"seconds": 0, "code": "not done"}
        head.append(f"| {step} | {found['seconds']:.0f} | {found['code']} |")
        said = (folder / f"{step}.log").read_text(errors="replace").splitlines()
        logs += ["", f"## {step}", "", *(f"    {line}" for line in said[-_LAST:])]
    return "\n".join([*head, *logs]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
