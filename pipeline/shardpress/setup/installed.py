"""Checks of Python, packages and memory. Importing this module ends the process with a message if a run is impossible.

This module must run with Python 3.6.
"""

import sys

from shardpress.base.packages import complaint, missing_proc, too_little_memory

_UNAVAILABLE = 69  # exit code of `DeviceError` and of scripts/setup.sh
_SYSTEM_LIMIT = 71  # exit code of `SystemLimit`

for _find, _exit_code in (
    (complaint, _UNAVAILABLE),
    (too_little_memory, _SYSTEM_LIMIT),
    (missing_proc, _SYSTEM_LIMIT),
):
    if _find():
        sys.stderr.write(_find() + "\n")
        sys.exit(_exit_code)
