"""Fixes of Theano's cache of compiled modules: its locks, which records are read and written, and their versions."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Sequence
from functools import cache, wraps
from hashlib import sha256
from pathlib import Path
from typing import Any

from shardpress_kernels import compilelock


def read_records_on_demand(cmodule: Any) -> None:
    """Replace the class of the module cache, of which Theano has no instance yet, by one that reads fewer records.

    Theano's own class reads the record (``key.pkl``) of every module in the cache when the first function is compiled.
    This takes about 2 ms per module, or two seconds at each start for a thousand modules. The name of a module's file
    is the hash of its C code. This code is generated before the cache is searched, so its hash identifies the records
    to read.
    """

    class ModuleCache(cmodule.ModuleCache):
        """A cache whose `refresh` skips recent modules whose code this process does not need."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self._hashes: set[str] = set()
            self._libraries: dict[str, str] = {}  # names of recent modules' libraries by record; they never change
            super().__init__(*args, **options)

        def module_from_key(self, key: Any, lnk: Any = None, keep_lock: bool = False) -> Any:
            """Return the module of a key, after reading the records of modules with the same code."""
            if key in self.entry_from_key:
                return super().module_from_key(key, lnk, keep_lock)
            code = lnk.get_src_code()
            code_hash = lnk.get_dynamic_module().code_hash
            self._hashes.add(code_hash)
            self.refresh(cleanup=False)
            if cmodule.get_module_hash(code, key) in self.module_hash_to_key_data:
                return super().module_from_key(key, lnk, keep_lock)
            with compilelock.compiling(code_hash):  # another process may be compiling the same module
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


def write_keys_atomically(cmodule: Any) -> None:
    """Make ``theano.gof.cmodule`` write the file with a module's keys atomically.

    Theano overwrites this file, and reads it without a lock. If a process read an empty file, it would remove the
    module as broken, although other processes had loaded it and still had keys to write.
    """

    def save_pkl(self: Any) -> None:
        temporary = f"{self.key_pkl}.{os.getpid()}"
        try:
            with open(temporary, "wb") as file:
                pickle.dump(self, file, protocol=pickle.HIGHEST_PROTOCOL)
        except BaseException as error:
            Path(temporary).unlink(missing_ok=True)
            if isinstance(error, pickle.PicklingError):
                Path(self.key_pkl).unlink(missing_ok=True)  # so that Theano finds no keys
            raise
        os.replace(temporary, self.key_pkl)

    cmodule.KeyData.save_pkl = save_pkl


def repair_code_versions(op_module: Any) -> None:
    """Give Ops whose C code comes from files the same version in each process.

    Theano uses the ``hash`` of the text of these files, which differs between processes. Without the fix, the code of
    such Ops, for example ``DimShuffle``, is compiled again at each start, and the cache of modules grows without bound.
    """

    def c_code_cache_version(self: Any) -> tuple[Any, ...]:
        digest = sha256("\0".join(self.func_codes).encode()).hexdigest()
        if hasattr(self, "params_type"):
            return (digest, self.params_type.c_code_cache_version())
        return (digest,)

    op_module.COp.c_code_cache_version = c_code_cache_version


def repair_module_versions(linker_module: Any) -> None:
    """Keep compiled code for other processes: of Ops without properties, and with headers in another directory.

    Theano's keys contain the directories of headers. Code for GPUs includes headers of the virtual environment, so it
    would be compiled again after each move. These keys contain a hash of the headers instead.

    Theano adds the tuple ``__props__`` of each Op to the version of its module, and treats an empty tuple as a missing
    version. Without the fix, the code of such Ops, for example ``GpuDot22`` and ``HostFromGpu``, is compiled again at
    each start.
    """
    original_key = linker_module.CLinker.cmodule_key_

    @wraps(original_key)
    def cmodule_key_(
        self: Any,
        graph: Any,
        no_recycling: Any,
        compile_args: Any = None,
        libraries: Any = None,
        header_dirs: Sequence[str] | None = None,
        *args: Any,
        **options: Any,
    ) -> Any:
        headers = [_fingerprint_headers(folder) for folder in header_dirs or ()]
        key = original_key(self, graph, no_recycling, compile_args, libraries, headers, *args, **options)
        if key is None or key[0]:
            return key
        version = []
        for node in self.schedule(graph):
            version.append(node.op.c_code_cache_version_apply(node))
            version.extend(variable.type.c_code_cache_version() for variable in (*node.inputs, *node.outputs))
        return (tuple(version), key[1]) if all(version) else key

    linker_module.CLinker.cmodule_key_ = cmodule_key_


@cache
def _fingerprint_headers(folder: str) -> str:
    """Return a hash of the headers of a directory that code of Theano can include."""
    digest = sha256()
    for pattern in ("*.h", "gpuarray/*.h", "numpy/*.h"):
        for path in sorted(Path(folder).glob(pattern)):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
