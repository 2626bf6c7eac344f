"""Random sequences of runs over files that change, each planned first, and compared with an independent computation.

Sample: ten sequences, in which every operation, fault and first flag occurs; with TEST_CASES=all, 150.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from msgspec import structs

from shardpress import load_model, open_features
from shardpress.output.disk import Disk
from shardpress.output.folder import fault_of
from shardpress.report.verify import verify
from shardpress.result.finished import INDEX, Result, Use
from shardpress.run import budget, difference, encoding_stage
from tests.support.cases import ALL_CASES, case
from tests.support.faulty import FailingDisk, KillingDisk, RecordingDisk, ShortWriteDisk, forked
from tests.support.interruptions import FullAfter
from tests.support.standin import PART_BYTES, Workspace, install

N_COLUMNS = 4
NAMES = [f"column{i}" for i in range(N_COLUMNS)]
FLAGS: list[tuple[str, ...]] = [
    (),
    ("--match-columns", "name"),
    ("--include", "obs/kind"),
    ("--fit-on", "part==1"),
    ("--target", "part"),
    ("--on-bad-data", "skip", "--max-bad", "50%"),
    ("--storage-dtype", "float16"),
    ("--row-error", "--clip-quantile", "0.1"),
]
"""Flags of the first run."""
_SKIPPING = "--on-bad-data"
_STAYING = ("shards/f0.h5", "others/g.h5", "sources/f0.h5")  # so that no folder is empty, nor the master file
_SOURCES = "sources"  # folder of files that only the master file names
_MASTER = "others/master.h5"


class PlannedWorkspace(Workspace):
    """A workspace that checks the plan of each run: it changes nothing, and predicts what the run computes."""

    def run(self, output: Path, *flags: str, disk: Disk | None = None) -> int:
        before = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        earlier = Result.open(output) if (output / INDEX).exists() else None
        intact = [] if earlier is None else [part for part in earlier.parts if fault_of(output, part.entry) is None]
        known = [structs.replace(rows, first=0) for part in intact for rows in part.ranges]
        planned_run = self.plan(output, *flags)
        assert {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()} == before
        code = super().run(output, *flags, disk=disk)
        if code:  # the disk has failed
            return code
        assert planned_run.problems == []
        result = Result.open(output)
        if earlier is not None and result.encoder != earlier.encoder:
            known = []
        new_ranges = [rows for part, rows in result.ranges if output / part.file not in before]
        n_encoded = sum(rows.n_rows for rows in new_ranges if structs.replace(rows, first=0) not in known)  # not copied
        change = planned_run.change
        assert (change["n_kept"], change["n_encoded"]) == (result.n_rows - n_encoded, n_encoded)
        seconds = {stage.name: stage.seconds for stage in planned_run.stages}
        assert (seconds.get("training", 0) > 0) == (earlier is None or result.encoder != earlier.encoder)
        return code


@dataclass(frozen=True)
class _File:
    """Rows and extras of a file."""

    rows: np.ndarray  # in the order of `NAMES`
    uid: np.ndarray  # number of each row
    order: tuple[int, ...] = tuple(range(N_COLUMNS))  # of the columns in the file
    kinds: tuple[str, ...] = ("a", "b")  # labels

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        with h5py.File(path, "w") as file:
            file["X"] = self.rows[:, self.order]
            file["X"].attrs["columns"] = [NAMES[i] for i in self.order]
            if path.parent.name != _SOURCES:
                file["uid"] = self.uid
            file["part"] = (self.uid % 2).astype(np.int8)
            group = file.create_group("obs")
            kind = group.create_group("kind")
            kind.attrs.update({"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False})
            categories = sorted(set(self.kinds))
            kind["codes"] = np.array([categories.index(each) for each in self.labels], np.int8)
            kind["categories"] = categories
            group["late"] = self.uid * 3

    @property
    def labels(self) -> list[str]:
        return [self.kinds[i % len(self.kinds)] for i in self.uid]

    @property
    def is_bad(self) -> np.ndarray:
        return np.isnan(self.rows).any(axis=1)


@dataclass
class _Shard:
    """Expected rows of a file in the result."""

    name: str  # path of the file relative to the folder
    file: _File
    append_id: int
    use: np.ndarray  # of each row


class RandomSequence:
    """Files that change at random, runs over them, and what their result must contain."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._rng = np.random.default_rng(seed)
        self._folder = folder
        self._flags = list(FLAGS[seed % len(FLAGS)])
        self._workspace = PlannedWorkspace(folder)
        self._output = folder / "out"
        self._files: dict[str, _File] = {}  # by their names
        self._shards: list[_Shard] = []  # in the order of the rows
        self._changed: set[str] = set()  # files of the result with other content
        self._used: set[str] = set()  # files that this step has changed
        self._broken: set[str] = set()  # files of the result that cannot be read at the moment
        self._has_damage = False  # whether a part is damaged
        self._trained: Counter[bytes] = Counter()  # rows of each file that trained the model
        self._n_uids = 0
        self._n_names = 0
        self._n_appends = 0
        self._n_models = 0
        self._in_master: list[tuple[str, list[int]]] = []  # the sources, and the numbers of their rows
        self._log: list[str] = [f"sequence {seed} {' '.join(self._flags)}:"]

    def __repr__(self) -> str:
        return " ".join(self._log)

    # -- files --

    def _new_file(self, n_rows: int | None = None) -> _File:
        n = self._random.randrange(1, 40) if n_rows is None else n_rows
        uid = np.arange(self._n_uids, self._n_uids + n)
        self._n_uids += n
        rows = self._rng.normal(size=(n, N_COLUMNS)).astype(np.float32)
        if _SKIPPING in self._flags and n >= 10:
            rows[self._random.randrange(n), 0] = np.nan
        kinds = ("a", "b") if self._random.random() < 0.5 else ("b", self._random.choice("acdef"))
        return _File(rows, uid, self._any_order(), kinds)

    def _few(self) -> int:
        """Return a number of rows of which a part has several times as many."""
        return self._random.randrange(1, 6)

    def _any_order(self) -> tuple[int, ...]:
        if "--match-columns" not in self._flags:
            return tuple(range(N_COLUMNS))
        return tuple(int(i) for i in self._rng.permutation(N_COLUMNS))

    def _new_name(self, folder: str) -> str:
        self._n_names += 1
        return f"{folder}/n{self._random.randrange(10)}{self._n_names:03d}.h5"

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _write(self, name: str, file: _File) -> None:
        self._files[name] = file
        file.write(self._path(name))

    def _write_master(self) -> None:
        """Write the file that names the rows of all sources, and has their numbers, unless it does so already."""
        sources = [(name, self._files[name]) for name in self._in_order(self._files) if name.startswith(_SOURCES)]
        content = [(name, file.uid.tolist()) for name, file in sources]
        if content == self._in_master:
            return
        self._in_master = content
        layout = h5py.VirtualLayout((sum(len(file.uid) for _, file in sources), N_COLUMNS), "f4")
        first = 0
        for name, file in sources:
            n = len(file.uid)
            if n:
                layout[first : first + n] = h5py.VirtualSource(f"../{name}", "X", (n, N_COLUMNS))
            first += n
        with h5py.File(self._path(_MASTER), "w") as master:
            master.create_virtual_dataset("X", layout)
            master["uid"] = np.concatenate([file.uid for _, file in sources])

    def _any_name(self) -> str:
        """Return a file with rows, if possible one that this step has not changed yet."""
        readable = {name for name, file in self._files.items() if len(file.rows)} - self._broken
        names = sorted(readable - self._used) or sorted(readable)
        name = self._random.choice(names)
        self._used.add(name)
        return name

    def _unique(self) -> list[str]:
        """Return files of the result that no other file equals or equalled, so that it is clear which one has moved."""
        n_equal = Counter(file.rows.tobytes() for file in self._files.values())
        n_equal |= Counter(shard.file.rows.tobytes() for shard in self._shards)
        known = [shard.name for shard in self._shards if shard.name in self._files]
        known = [name for name in known if name not in self._changed | self._broken]
        return [name for name in known if n_equal[self._files[name].rows.tobytes()] == 1]

    # -- operations: each one changes the files, and what the result must contain --

    def add(self) -> None:
        """Add a file, an empty file, or small files that share a part."""
        small = [self._few() for _ in range(self._random.randrange(2, 6))]
        for n_rows in self._random.choice([[None], [0], small]):
            folder = self._random.choice(["shards", "others"] if n_rows == 0 else ["shards", "others", _SOURCES])
            self._write(self._new_name(folder), self._new_file(n_rows))

    def change(self) -> None:
        name = self._any_name()
        self._write(name, self._new_file())
        self._changed.add(name)

    def grow(self) -> None:
        name = self._any_name()
        file = self._files[name]
        more = self._new_file(4)
        rows = np.concatenate([file.rows, more.rows])
        self._write(name, replace(file, rows=rows, uid=np.concatenate([file.uid, more.uid])))
        self._changed.add(name)

    def edit_in_place(self) -> None:
        """Change a row, but neither the size nor the modification time."""
        name = self._any_name()
        file = self._files[name]
        path = self._path(name)
        status = path.stat()
        rows = file.rows.copy()
        rows[self._random.randrange(len(rows))] += np.float32(0.25)
        with h5py.File(path, "r+") as opened:
            opened["X"][:] = rows[:, file.order]
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        self._files[name] = replace(file, rows=rows)
        self._changed.add(name)

    def edit_labels(self) -> None:
        """Write the same rows with other extras."""
        name = self._any_name()
        file = self._files[name]
        edited = replace(file, kinds=("b", self._random.choice("acdef")))
        self._write(name, edited)
        if "obs/kind" in self._flags and edited.labels != file.labels:
            self._changed.add(name)

    def permute(self) -> None:
        """Write the same rows with the columns in another order."""
        name = self._any_name()
        self._write(name, replace(self._files[name], order=self._any_order()))

    def restat(self) -> None:
        """Change facts about a file, but not its rows: time, permissions or inode."""
        path = self._path(_MASTER if self._random.random() < 0.1 else self._any_name())
        what = self._random.choice(["touch", "chmod", "copy"])
        if what == "touch":
            os.utime(path)
        elif what == "chmod":
            path.chmod(path.stat().st_mode ^ 0o020)
        else:
            shutil.copyfile(path, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)

    def duplicate(self) -> None:
        names = [name for name in self._unique() if name not in self._used and not name.startswith(_SOURCES)]
        if not names:
            return
        name = self._random.choice(names)
        self._used.add(name)
        copy = self._new_name("others")
        shutil.copyfile(self._path(name), self._path(copy))
        self._files[copy] = self._files[name]

    def move(self) -> None:
        name = self._any_name()
        if name not in self._unique() or name in _STAYING or name.startswith(_SOURCES):
            return
        target = self._new_name("others")
        self._path(name).rename(self._path(target))
        self._used.add(target)
        self._files[target] = self._files.pop(name)
        self._shard_of(name).name = target

    def drop(self) -> None:
        name = self._any_name()
        if name in self._unique() and name not in _STAYING:
            self._path(name).unlink()
            del self._files[name]

    def break_file(self) -> None:
        """Make a file unreadable. Its rows stay in the result."""
        names = [name for name in self._unique() if name not in self._used and len(self._files[name].rows)]
        if _SKIPPING not in self._flags or self._has_damage or self._broken or not names:
            return
        name = self._random.choice(names)
        self._path(name).write_bytes(b"not HDF5")
        self._broken.add(name)
        self._used.add(name)

    def repair(self) -> None:
        for name in sorted(self._broken):
            self._write(name, self._files[name])
        self._broken.clear()

    def damage(self) -> None:
        """Remove or damage a part."""
        if self._broken:
            return
        self._has_damage = True
        part = self._random.choice(Result.open(self._output).parts)
        path = self._output / part.file
        if self._random.random() < 0.5 or not path.exists():
            path.unlink(missing_ok=True)
        else:
            path.write_bytes(path.read_bytes()[:-1])

    def _shard_of(self, name: str) -> _Shard:
        return next(shard for shard in self._shards if shard.name == name)

    # -- runs --

    def start(self) -> None:
        """Write files, and train on them."""
        for i in range(3):
            self._write(f"shards/f{i}.h5", self._new_file(40 + i))
        for i in range(6):
            self._write(f"shards/s{i}.h5", self._new_file(self._few()))
        self._path("others").mkdir(exist_ok=True)
        self._write("others/g.h5", self._new_file(60))
        for i in range(3):
            self._write(f"{_SOURCES}/f{i}.h5", self._new_file(20 + i))
        self._train()
        self._check()

    def step(self) -> None:
        """Change the files, append or train again, and check the result."""
        self._used.clear()
        n_operations = self._random.randrange(1, 4)
        if self._random.random() < 0.15:
            self.repair()
            # The earlier generation would keep a damaged part, and a training needs all files.
            self._change_files(n_operations, {"damage", "break_file"})
            self._n_models += 1
            self._log.append("retrain")
            self._train("--seed", str(self._n_models), "--retrain", "--drop-missing")
        else:
            self._change_files(n_operations)
            self._append()
        self._check()

    def _change_files(self, n_operations: int, excluded: Collection[str] = ()) -> None:
        names = [name for name in OPERATIONS if name not in excluded]
        for name in self._random.choices(names, k=n_operations):
            self._log.append(name)
            getattr(self, name)()

    def _run(self, *flags: str, expected: Sequence[int] = (0,), disk: RecordingDisk | None = None) -> int:
        self._write_master()
        inputs = ["--input", str(self._path("others"))]
        code = self._workspace.run(self._output, *inputs, *flags, disk=disk)
        assert code in expected, f"exit code {code}"
        return code

    def _train(self, *flags: str) -> None:
        self._run(*self._flags, *flags)
        self._n_appends = 0
        self._changed.clear()
        use = Result.open(self._output).use()
        self._shards = []
        for name in self._in_order(self._files):
            file = self._files[name]
            self._shards.append(_Shard(name, file, 0, use[: len(file.rows)]))
            use = use[len(file.rows) :]
        self._trained = Counter(file.rows.tobytes() for file in self._files.values() if len(file.rows))
        self._check_use_of_training()

    def _append(self) -> None:
        flags = ["--append", "--drop-missing"]
        if "obs/late" not in self._flags and self._random.random() < 0.2:
            self.repair()  # because all rows are read
            self._flags += ["--include", "obs/late"]
            self._log.append("late")
        flags += [flag for flag in self._flags if flag in ("--include", "obs/late", "obs/kind")]
        if self._random.random() < 0.2:
            self._disturb(*flags)
            self._change_files(1, {"break_file"})
        self._log.append("append")
        self._run(*flags)
        self._expect_appended()
        if self._random.random() < 0.3:
            self._log.append("again")
            recording = RecordingDisk()
            self._run(*flags, disk=recording)
            assert recording.calls == [], "repeated run"

    def _disturb(self, *flags: str) -> None:
        """Run with a fault at a random moment."""
        index = self._output / "index.h5"
        before = index.read_bytes()
        number = self._random.randrange(60)  # the run may end before that call
        code = self._random.choice([errno.ENOSPC, errno.EIO, errno.EMFILE])
        is_either = self._random.random() < 0.5
        fault = self._random.choice(["fails", "is short", "is full", "is killed"])
        self._log.append(f"{fault} at {number}")
        if fault == "is killed":
            run = partial(self._run, *flags, disk=KillingDisk(number, after=is_either))
            outcome, found = forked(run)
            assert outcome in (0, -signal.SIGKILL), "exit code"
        else:
            disks = {
                "fails": FailingDisk(number, code, is_permanent=is_either),
                "is short": ShortWriteDisk(number // 8, code if is_either else 0),
                "is full": FullAfter("part", 1),
            }
            found = self._run(*flags, expected=(0, 71, 73, 74), disk=disks[fault])
        if found == 0 or index.read_bytes() != before:
            self._expect_appended()

    def _expect_appended(self) -> None:
        self._has_damage = False
        known = {shard.name for shard in self._shards}
        new = self._in_order(set(self._files) - known)
        remaining = [shard for shard in self._shards if shard.name in self._files]
        changed = [shard for shard in remaining if shard.name in self._changed and self._has_other_rows(shard)]
        if new or changed or len(remaining) < len(self._shards):
            self._n_appends += 1
        is_unknown = bool(self._trained - Counter(file.rows.tobytes() for file in self._files.values()))
        for name in new:
            file = self._files[name]
            remaining.append(_Shard(name, file, self._n_appends, self._use_of_later(file)))
        for shard in changed:
            file = self._files[shard.name]
            shard.append_id = self._n_appends
            shard.use = self._use_of_later(file)
        for shard in remaining:
            shard.file = self._files[shard.name]
            if is_unknown:
                shard.use = np.where(shard.use == Use.LATER, Use.TRAINING, shard.use)
        self._shards = remaining
        self._changed.clear()

    def _has_other_rows(self, shard: _Shard) -> bool:
        return shard.file.rows.tobytes() != self._files[shard.name].rows.tobytes()

    def _use_of_later(self, file: _File) -> np.ndarray:
        """Return the use of rows that an append brings while all files of the training are there."""
        return np.full(len(file.rows), Use.TRAINING if file.rows.tobytes() in self._trained else Use.LATER)

    def _in_order(self, names: Collection[str]) -> list[str]:
        """Return files in the order of the input."""
        return sorted(names, key=lambda name: (not name.startswith("shards"), name.replace(_SOURCES, _MASTER)))

    # -- checks --

    def _check_use_of_training(self) -> None:
        use = np.concatenate([shard.use for shard in self._shards])
        is_left_out = np.zeros(len(use), bool)
        if "--fit-on" in self._flags:
            is_left_out = np.concatenate([shard.file.uid % 2 == 0 for shard in self._shards])
        assert np.array_equal(use == Use.LEFT_OUT, is_left_out), "left out"
        assert Use.VALIDATION in use, "validation"
        assert Use.LATER not in use, "later"

    def _check(self) -> None:
        found = open_features(self._output)
        files = [shard.file for shard in self._shards]
        uid = np.concatenate([file.uid for file in files])
        extras = {name: values.compute() for name, values in found.extras.items()}
        assert extras["uid"].tolist() == uid.tolist(), "order of the rows"
        self._check_features(found.features.compute(), found.valid.compute(), extras.get("error"))
        use = np.concatenate([shard.use for shard in self._shards])
        assert found.result.use().tolist() == use.tolist(), "use"
        if self._n_appends:
            ids = np.concatenate([np.full(len(shard.use), shard.append_id) for shard in self._shards])
            assert extras["append_id"].tolist() == ids.tolist(), "append_id"
        assert ("append_id" in extras) == bool(self._n_appends), "append_id"
        assert ("kind" in extras) == ("obs/kind" in self._flags), "kind"
        assert ("late" in extras) == ("obs/late" in self._flags), "late"
        if "kind" in extras:
            labels = [label for file in files for label in file.labels]
            assert found.categories["kind"][extras["kind"]].tolist() == labels, "categories"
        if "late" in extras:
            assert extras["late"].tolist() == (3 * uid).tolist(), "late"
        self._check_bad_rows()
        assert found.result.n_bad == sum(np.count_nonzero(file.is_bad) for file in files), "n_bad"
        assert not verify(str(self._output), n_rows=len(uid)).faults, "verify"

    def _check_features(self, features: np.ndarray, valid: np.ndarray, errors: np.ndarray | None) -> None:
        rows = np.concatenate([shard.file.rows for shard in self._shards])
        is_bad = np.isnan(rows).any(axis=1)
        assert valid.tolist() == (~is_bad).tolist(), "valid"
        model = load_model(self._output)
        rows = rows[:, [NAMES.index(name) for name in model.columns.names]]
        expected = model.encode(rows)
        expected[is_bad] = np.nan
        tolerance = 1e-5 if features.dtype == np.float32 else 1e-3
        assert np.allclose(features, expected, atol=tolerance, equal_nan=True), "features"
        assert (errors is not None) == ("--row-error" in self._flags), "error"
        if errors is not None:
            assert np.allclose(errors, model.row_errors(rows, expected), rtol=1e-4, equal_nan=True), "error"
        with h5py.File(self._output / "index.h5") as index:
            assert np.array_equal(index["features"], features, equal_nan=True), "index"

    def _check_bad_rows(self) -> None:
        expected = [
            (str(self._path(shard.name)), int(row))
            for shard in self._shards
            for row in np.flatnonzero(shard.file.is_bad)
        ]
        path = self._output / "bad_rows.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        found = [(line["file"], line["row"]) for line in lines if line["row"] is not None]
        assert found == expected, "bad rows"


OPERATIONS = (
    *("add", "add", "add", "change", "grow", "edit_in_place", "edit_labels", "permute", "restat"),
    *("duplicate", "move", "drop", "damage", "break_file", "repair"),
)
"""Methods that change files. Some are more frequent."""


# In this sample, every operation, every fault and all flags of the first run occur.
SAMPLE = (1, 2, 4, 11, 12, 13, 14, 15, 16, 17)


@pytest.mark.process
@pytest.mark.parametrize("seed", range(150) if ALL_CASES else SAMPLE)
def test_each_run_of_a_random_sequence_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    install(monkeypatch)
    sizes = random.Random(seed)
    monkeypatch.setattr(encoding_stage, "_LEAST_FILES", sizes.choice([2, 4, 20]))
    monkeypatch.setattr(budget, "_PART_BYTES", PART_BYTES * sizes.choice([1, 3]))
    monkeypatch.setattr(difference, "MOST_PARTS", sizes.choice([4, 12, 500]))
    sequence = RandomSequence(tmp_path, seed)
    with case(sequence):
        sequence.start()
        for _ in range(4):
            sequence.step()
