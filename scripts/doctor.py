"""Look at everything that a run needs, and say what to mend: that comes first. `shardpress doctor` does the same.

    python scripts/doctor.py
    THEANO_FLAGS=device=cuda python scripts/doctor.py       for a run that asks for this device

Any Python will do, with or without packages: what is missing is what it tells.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where any Python finds what the next lines name

if sys.version_info < (3, 11):  # noqa: UP036 - it cannot read what follows
    from pipeline.doctor.packages import complaint

    sys.stderr.write(complaint() + "\n")
    sys.exit(78)

# isort: split

from collections.abc import Sequence

from pipeline.commands.table import run_script
from pipeline.signals import leave


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was found, and return the exit code."""
    return run_script("doctor", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    leave(main())
