"""A variant of Theano's cache of compiled modules that reads only the records of the modules that a process needs.

Theano's own class reads the record (``key.pkl``) of every module in the cache when the first function is compiled. This
takes about 2 ms per module, or two seconds at each start for a thousand modules. The name of a module's file is the
hash of its C code. This code is generated before the cache is searched, so its hash identifies the records to read.
"""

from __future__ import annotations

import os
import time
from typing import Any


def read_records_on_demand(cmodule: Any) -> None:
    """Replace the class of the module cache, of which Theano has no instance yet."""

    class ModuleCache(cmodule.ModuleCache):
        """A cache whose `refresh` skips recent modules whose code this process does not need."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self._hashes: set[str] = set()
            self._libraries: dict[str, str] = {}  # names of recent modules' libraries by record; they never change
            super().__init__(*args, **options)

        def module_from_key(self, key: Any, lnk: Any = None, keep_lock: bool = False) -> Any:
            """Return the module of a key, after reading the records of modules with the same code."""
            if key not in self.entry_from_key:
                lnk.get_src_code()
                self._hashes.add(lnk.get_dynamic_module().code_hash)
                self.refresh(cleanup=False)
            return super().module_from_key(key, lnk, keep_lock)

        def refresh(self, age_thresh_use: float | None = None, **options: Any) -> list[str]:
            """Read the records of modules that this process needs, and let Theano handle old or incomplete ones."""
            max_age = self.age_thresh_use if age_thresh_use is None else age_thresh_use
            self._libraries = _recent_libraries(self.dirname, max_age, self._libraries)
            needed = {f"{code_hash}.so" for code_hash in self._hashes}
            others = {record for record, library in self._libraries.items() if library not in needed}
            skipped = others - self.loaded_key_pkl
            # Theano treats the records in this set as read, and skips them. At the end it looks for removed modules.
            # For this step, the set must contain only records that Theano has really read.
            self.loaded_key_pkl |= skipped
            try:
                return list(super().refresh(age_thresh_use, **options))
            finally:
                self.loaded_key_pkl -= skipped

    cmodule.ModuleCache = ModuleCache


def _recent_libraries(directory: str, max_age: float, known: dict[str, str]) -> dict[str, str]:
    """Return the library name of each complete module used in the last `max_age` seconds, by the path of its record."""
    oldest = time.time() - max_age
    recent = {}
    try:
        names = os.listdir(directory)
    except OSError:  # Theano reports a cache that cannot be used when it writes to it
        return {}
    for name in names:
        folder = os.path.join(directory, name)
        record = os.path.join(folder, "key.pkl")
        if record in known:
            recent[record] = known[record]
            continue
        try:
            files = os.listdir(folder)
            libraries = [file for file in files if file.endswith(".so")]
            is_whole = len(libraries) == 1 and "key.pkl" in files and "delete.me" not in files
            if is_whole and os.stat(os.path.join(folder, libraries[0])).st_atime > oldest:
                recent[record] = libraries[0]
        except OSError:  # not a directory, or another process has removed it
            continue
    return recent
