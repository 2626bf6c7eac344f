"""Check everything that a run needs, and print problems first. `shardpress doctor` does the same.

    python scripts/doctor.py
    THEANO_FLAGS=device=cuda python scripts/doctor.py       check for a run on this device

The script runs with any Python, with or without packages, and reports missing packages.
"""

import sys
from pathlib import Path

# So that any Python finds the modules below.
sys.path += [str(Path(__file__).resolve().parents[1] / name) for name in ("pipeline", "kernels")]

if sys.version_info < (3, 11):  # noqa: UP036 - older versions cannot parse the modules below
    from shardpress.base.packages import complaint

    sys.stderr.write(complaint() + "\n")
    sys.exit(78)

# isort: split

from shardpress.base.signals import leave
from shardpress.commands.registry import main

if __name__ == "__main__":
    leave(main(["doctor", *sys.argv[1:]]))
