"""The child: whatever a file does to libhdf5 costs one clear error, and reaches nothing else."""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipeline.errors import DataError
from pipeline.hdf5 import limits
from pipeline.hdf5.child import ask as gatekeeper
from pipeline.hdf5.child import describe, find, layouts, riders
from pipeline.hdf5.child.ask import LIMITS, ask
from pipeline.shards.open import open_shards
from pipeline.shards.rows import read, read_riders
from pipeline.shards.shard import Block
from pipeline.shards.vet import Wanted, vet
from tests.support import hostile
from tests.support.helpers import names, numbered, refused, write_shard

ROOT = Path(__file__).parents[3]

# A child like the real one, in which the function that looks at a file is another one.
EVIL = """
import ctypes, os, socket, sys, time
sys.path.insert(0, {root!r})
import numpy as np
from pipeline.hdf5.child import server as sandbox
from pipeline.hdf5.child.describe import describe as honest
warm_up = sandbox._warm_up
def describe(file, dataset, *wanted):
    {lines}
def start():
    warm_up()
    sandbox.describe = describe
sandbox._warm_up = start
sandbox.main()
"""


@pytest.fixture
def fresh():
    """No child from before, and none that a test has bent left over."""
    gatekeeper.retire()
    yield
    gatekeeper.retire()


@pytest.fixture
def evil(fresh, monkeypatch):
    """Let the child do something else when it is to describe a file."""

    def bend(*lines):
        gatekeeper.retire()
        program = EVIL.format(root=str(ROOT), lines="\n    ".join(lines))
        monkeypatch.setattr(gatekeeper, "_PROGRAM", program.replace("{", "{{").replace("}", "}}"))

    return bend


def unusual(path, n_rows=3):
    """A shard that only the child understands, for the text that lies beside its rows."""
    return write_shard(path, numbered(n_rows), riders={"text": np.array(["text"] * n_rows, object)})


@pytest.fixture
def path(tmp_path):
    return unusual(tmp_path / "x.h5")


def child_pid():
    (keeper,) = gatekeeper._idle
    return keeper._process.pid


# -- what happens to it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "phrase"),
    [
        ("ctypes.string_at(0)", "crashed on this file (signal 11)"),
        ("os.abort()", "crashed on this file (signal 6)"),
        ("os._exit(3)", "gave up on this file (exit code 3)"),
        ("while True: pass", "took more than 1 s of the processor for this file"),
        ("np.ones(2**27)", "ran out of its memory limit of 512 MiB"),
        ("os.write(1, bytes(2**20)); os._exit(0)", "went astray"),
        ("os._exit(0)", "went astray"),
        ("os.write(1, b'[]\\n'); os._exit(0)", "went astray"),
        ("os.write(1, b'{' * 10**6 + b'\\n'); os._exit(0)", "went astray"),
        ("os.write(1, b'[' * 10**6 + b'\\n'); os._exit(0)", "went astray"),
        ('os.write(1, b\'{"answer": 1, "arrays": [["|O", [1]]]}\\n\' + bytes(8)); os._exit(0)', "went astray"),
        ('os.write(1, b\'{"answer": 1, "arrays": [["<i8", [-1]]]}\\n\'); os._exit(0)', "went astray"),
        ('os.write(1, b\'{"answer": 1, "arrays": [["<i8", [1]]]}\\n\'); os._exit(0)', "went astray"),
        ("while True: os.write(1, bytes(2**20))", "does not stop talking"),
        ("raise ValueError('\\x1b[31m\\n')", "\\x1b[31m\\x0a"),
        ("raise ValueError('x' * 10**6)", "xxx..."),
    ],
)
def test_p10_whatever_happens_to_the_child_costs_this_file_only(path, evil, monkeypatch, act, phrase):
    monkeypatch.setattr(LIMITS, "seconds", 1)
    evil("if dataset == 'evil':", f"    {act}", "return {}, []")
    with refused(65, f"file={path}", phrase):
        vet(Path(path), Wanted("evil"))
    with refused(65, f"file={path}", "makes no sense"):
        vet(Path(path))  # which is the same process, and alive


def test_p10_a_child_that_only_waits_is_not_waited_for(path, evil, monkeypatch):
    """Though the clock alone says little: a busy machine takes its time for sound files as well."""
    evil("if dataset == 'evil':", "    time.sleep(10**6)", "return honest(file, dataset, *wanted)")
    with monkeypatch.context() as impatient:
        impatient.setattr(LIMITS, "patience", 0.5)
        impatient.setattr(gatekeeper, "_GRACE", 10**6)  # the child itself may take any time to start
        with refused(65, f"file={path}", "took more than 0.5 s for this file"):
            vet(Path(path), Wanted("evil"))
    assert vet(Path(path)).shape == (3, 2)


def test_p10_only_the_file_that_crashes_the_library_is_left_out(tmp_path, evil):
    for i in range(4):
        unusual(tmp_path / f"{i}.h5", 3 + i)
    evil(
        "if file['X'].shape[0] == 5: ctypes.string_at(0)",
        "return honest(file, dataset, *wanted)",
    )
    left_out = []
    shards = open_shards([str(tmp_path)], on_bad_shard=lambda path, error: left_out.append((path.name, str(error))))
    assert [Path(shard.path).name for shard in shards] == ["0.h5", "1.h5", "3.h5"]
    ((name, sentence),) = left_out
    assert name == "2.h5"
    assert "crashed on this file (signal 11)" in sentence


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_child_waits_for_the_driver_not_for_signals(path, fresh, number):
    vet(Path(path))
    before = child_pid()
    os.kill(before, number)
    vet(Path(path))
    assert child_pid() == before


def test_p9_a_child_that_was_killed_is_started_again(path, fresh):
    vet(Path(path))
    before = child_pid()
    os.kill(before, signal.SIGKILL)
    assert vet(Path(path)).shape == (3, 2)
    assert child_pid() != before


def test_p9_a_fork_that_was_killed_from_outside_is_asked_again_and_not_held_against_the_file(path, evil, tmp_path):
    evil("if dataset == 'evil': os.kill(os.getpid(), 9)", "return honest(file, dataset, *wanted)")
    with refused(71, f"file={path}", "killed or got stuck twice"):
        vet(Path(path), Wanted("evil"))
    assert vet(Path(path)).shape == (3, 2)


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.stdin.readline()",
        "import sys; sys.stdin.readline(); print('end', end='')",  # which was waited for without end
        "pass",
        "import os; os.kill(os.getpid(), 9)",
    ],
)
def test_p9_a_child_that_dies_again_and_again_is_a_fault_of_the_system(path, fresh, monkeypatch, program):
    monkeypatch.setattr(gatekeeper, "_PROGRAM", program)
    with refused(71, f"file={path}", "killed or got stuck twice", "dmesg"):
        vet(Path(path))


def test_a_child_that_cannot_be_started_comes_with_the_limits_to_raise(path, fresh, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with refused(71, f"file={path}", "cannot be started", "ulimit"):
        vet(Path(path))


@pytest.mark.parametrize("n", [4, 5, 6])
def test_d14_a_child_without_descriptors_is_a_fault_of_the_system(path, fresh, monkeypatch, n):
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({n}, {n})); main()"
    monkeypatch.setattr(gatekeeper, "_PROGRAM", gatekeeper._PROGRAM.replace("main()", limited))
    with refused(71, f"file={path}"):
        vet(Path(path))


def test_a_child_that_is_stuck_is_taken_down(path, fresh, monkeypatch):
    monkeypatch.setattr(gatekeeper, "_PROGRAM", "import time; time.sleep(1000)")
    monkeypatch.setattr(gatekeeper, "_GRACE", 0.1)
    monkeypatch.setattr(LIMITS, "patience", 0.1)
    with refused(71, f"file={path}", "killed or got stuck twice"):
        vet(Path(path))


def test_an_interrupted_question_is_not_answered_to_the_next(path, evil):
    evil(
        f"if dataset == 'slow': os.kill({os.getpid()}, 10); time.sleep(1000)",
        "return honest(file, dataset, *wanted)",
    )

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            vet(Path(path), Wanted("slow"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert vet(Path(path)).shape == (3, 2)


DRIVER = """
import os, sys
from pathlib import Path
from pipeline.hdf5.child import ask as gatekeeper
from pipeline.errors import DataError
from pipeline.shards.vet import Wanted, vet
vet(Path(sys.argv[1]))
print(gatekeeper._idle[0]._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGTERM"])
def test_p11_the_child_ends_with_the_driver(path, how):
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    child = os.pidfd_open(int(driver.stdout.readline()))
    try:
        if how != "exit":
            driver.send_signal(getattr(signal, how))
        driver.communicate()
        assert select.select([child], [], [], 60)[0], "the child lives on"
    finally:
        os.close(child)


def test_c7_the_child_is_no_fork_of_the_driver_and_needs_none_of_its_locks(path, fresh, monkeypatch):
    def no_fork():
        raise AssertionError("forked")

    monkeypatch.setattr(os, "fork", no_fork)
    held, done = threading.Event(), threading.Event()

    def hold():
        with h5py._hl.base.phil:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        held.wait()
        (shard,) = open_shards([path])
        np.testing.assert_array_equal(read(Block(shard, 0, 3)), numbered(3))
    finally:
        done.set()
        thread.join()


def test_threads_that_ask_at_once_are_served_at_once(tmp_path, fresh):
    text = np.array(["one", "two", "three"], object)
    shards = open_shards([write_shard(tmp_path / f"{i}.h5", numbered(3), riders={"t": text}) for i in range(8)])
    found = {}

    def take(i):
        found[i] = [read_riders(Block(shards[i], j, j + 1))["t"][0].decode() for j in range(3)]

    threads = [threading.Thread(target=take, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: text.tolist() for i in range(8)}
    assert 1 <= len(gatekeeper._idle) <= 8


def test_a_fork_of_the_driver_has_a_child_of_its_own(path, fresh):
    vet(Path(path))
    before = child_pid()
    reader, writer = os.pipe()
    forked = os.fork()
    if not forked:
        try:
            vet(Path(path))
            os.write(writer, str(child_pid()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        theirs = answer.read()
    os.waitpid(forked, 0)
    assert theirs
    assert int(theirs) != before
    assert vet(Path(path)).shape == (3, 2)
    assert child_pid() == before


# -- what it may do ------------------------------------------------------------------------------------------------


def attempt(path, evil, act):
    """What comes of an attempt in the child, after it has opened the file: None where it succeeds."""
    evil(
        "try:",
        f"    {act}",
        "except BaseException as error:",
        "    return {'caught': repr(error)}, []",
        "return {'caught': None}, []",
    )
    descriptor = os.open(path, os.O_RDONLY)
    try:
        facts, _ = ask("describe", descriptor, [None], "")
    finally:
        os.close(descriptor)
    return facts["caught"]


@pytest.mark.parametrize(
    "act",
    [
        "open('/etc/passwd')",
        "open('/proc/self/maps')",
        "os.listdir('/')",
        "socket.socket()",
        "os.pipe()",
        "__import__('h5py').File('/etc/passwd')",
        "os.unlink(os.environ['VICTIM'])",
        "os.rename(os.environ['VICTIM'], os.environ['VICTIM'] + '2')",
        "os.mkdir(os.environ['VICTIM'] + '2')",
        "os.symlink('/', os.environ['VICTIM'] + '2')",
    ],
)
def test_the_child_can_open_make_and_remove_nothing(path, tmp_path, evil, monkeypatch, act):
    victim = tmp_path / "victim"
    victim.touch()
    monkeypatch.setenv("VICTIM", str(victim))
    if "VICTIM" in act and ctypes_landlock() < 1:
        pytest.skip("missing on this machine: Landlock (Linux 5.13)")
    assert attempt(path, evil, act)
    assert victim.exists()
    assert not Path(f"{victim}2").exists()


def ctypes_landlock():
    """The version of Landlock, or -1."""
    return hostile._LIBC.syscall(444, None, 0, 1)


def test_the_test_of_what_the_child_may_do_sees_what_it_may(path, evil):
    assert attempt(path, evil, "os.getpid()") is None


WITHOUT_RIGHTS = """
import sys
from pipeline.shards.open import open_shards
from pipeline.shards.rows import read, read_riders
from pipeline.shards.shard import Block
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
assert int(status["CapEff"], 16) == 0
(shard,) = open_shards([sys.argv[1]])
print(read(Block(shard, 0, 3)).tolist(), read_riders(Block(shard, 0, 3))["text"].tolist())
"""


def test_lower_limits_of_the_user_are_kept(path):
    limits = "import resource as r; r.setrlimit(r.RLIMIT_CPU, (50, 50)); r.setrlimit(r.RLIMIT_NPROC, (4096, 4096))\n"
    command = [sys.executable, "-c", limits + DRIVER, path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, input="")
    assert done.stdout.strip().isdecimal(), done.stderr


def test_a_driver_without_any_rights_has_a_child_too(tmp_path):
    text = np.array([b"a", b"bc", b""], object)  # which only the child can read
    path = write_shard(tmp_path / "x.h5", numbered(3), riders={"text": text})
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.getuid() == 0 else []
    command = [*drop, sys.executable, "-c", WITHOUT_RIGHTS, path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == f"{numbered(3).tolist()} {text.tolist()}", done.stderr


def test_the_child_has_no_network(path, fresh):
    vet(Path(path))
    ours, theirs = (os.readlink(f"/proc/{pid}/ns/net") for pid in ("self", child_pid()))
    if ours == theirs:
        pytest.skip("missing on this machine: the right to make a network namespace")


def test_k10_nothing_here_listens_or_has_a_socket(path, fresh):
    vet(Path(path))
    for pid in ("self", child_pid()):
        links = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
        assert [link for link in links if link.startswith("socket")] == [] or pid == "self"


def test_the_child_has_one_thread_and_gains_no_rights(path, fresh):
    vet(Path(path))
    status = dict(line.split(":\t") for line in Path(f"/proc/{child_pid()}/status").read_text().splitlines())
    assert status["Threads"].strip() == "1"
    assert status["NoNewPrivs"].strip() == "1"


def test_s19_the_childs_environment_is_clean(path, fresh, monkeypatch):
    planted = {
        "HDF5_PLUGIN_PATH": "/tmp",
        "HDF5_VOL_CONNECTOR": "evil",
        "HDF5_DRIVER": "core",
        "HDF5_EXT_PREFIX": "/tmp",
        "HDF5_VDS_PREFIX": "/tmp",
        "HDF5_EXTFILE_PREFIX": "/tmp",
        "LD_PRELOAD": "",
        "LD_AUDIT": "",
        "PYTHONPATH": "/tmp",
        "PYTHONSTARTUP": "/tmp/x.py",
    }
    for name, value in planted.items():
        monkeypatch.setenv(name, value)
    vet(Path(path))
    found = Path(f"/proc/{child_pid()}/environ").read_bytes().split(b"\0")
    assert [item for item in found if item.startswith((b"HDF5_", b"LD_PRELOAD", b"LD_AUDIT", b"PYTHON"))] == [
        b"HDF5_PLUGIN_PRELOAD=::"
    ]


PLANTED = """
import os, sys
if sys.argv[1] == "bare":
    import h5py
else:
    from pipeline.shards.open import open_shards
    left = sorted(name for name in os.environ if name.startswith("HDF5_"))
    assert left == ["HDF5_PLUGIN_PRELOAD"], left
    from pipeline.errors import DataError
    import h5py
try:
    h5py.File(sys.argv[2])["X"][:] if sys.argv[1] == "bare" else open_shards([sys.argv[2]])
except (OSError, KeyError, *([] if sys.argv[1] == "bare" else [DataError])) as error:
    print(error)
"""


@pytest.mark.parametrize("by", ["filter", "connector"])
def test_s6_a_planted_plugin_is_not_loaded(tmp_path, by):
    """Neither by this process nor by the child; that it would be is shown by h5py itself."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        made = file.create_dataset("X", (4, 2), "i4", chunks=(4, 2), compression=300 if by == "never" else None)
        properties = made.id.get_create_plist()
        properties.set_filter(300, h5py.h5z.FLAG_OPTIONAL, ())
        del file["X"]
        made = h5py.h5d.create(file.id, b"X", h5py.h5t.STD_I32LE, h5py.h5s.create_simple((4, 2)), dcpl=properties)
        made.write_direct_chunk((0, 0), bytes(32))
    environment = {**os.environ, **hostile.plugin(tmp_path)}
    environment.pop("HDF5_PLUGIN_PRELOAD")
    if by == "connector":
        environment["HDF5_VOL_CONNECTOR"] = "canary"
    canary = Path(environment["CANARY"])
    for how, loads in (("bare", True), ("ours", False)):
        command = [sys.executable, "-c", PLANTED, how, str(path)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert canary.exists() == loads, done.stderr
        canary.unlink(missing_ok=True)
    assert "filter 300" in done.stdout
    assert "not allowed" in done.stdout


# -- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_over", [0, 1])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_s10_names_beside_the_rows_are_bounded(tmp_path, monkeypatch, n_over, libver):
    monkeypatch.setattr(find, "MOST_OBJECTS", 50)
    with h5py.File(hostile.crowded(tmp_path, 48 + n_over, libver=libver)) as file:
        if n_over:
            with pytest.raises(find.Refused, match="more than 50 objects to look through"):
                describe.describe(file, None)
        else:
            assert describe.describe(file, None)[0]["dataset"] == "X"


@pytest.mark.parametrize("depth", [1, 30, 31, 32, 33, 500])
def test_s10_groups_are_searched_to_a_bounded_depth(tmp_path, depth):
    path = hostile.nested(tmp_path, depth)
    if depth < limits.MOST_DEPTH:
        (shard,) = open_shards([str(path)])
        assert shard.dataset == "g/" * depth + "rows"
    else:
        with refused(65, str(path), f"more than {limits.MOST_DEPTH} deep", "--dataset"):
            open_shards([str(path)])


def test_s10_a_group_that_contains_itself_is_searched_once(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["g/rows"] = hostile.ROWS
        file["g/g"] = file["g"]
        file["g/up"] = file["/"]
        file["again"] = file["g/rows"]
    assert open_shards([str(path)])[0].dataset in ("again", "g/rows")


def test_s10_a_hundred_thousand_objects_are_refused_in_bounded_time(tmp_path):
    path = hostile.crowded(tmp_path, limits.MOST_OBJECTS)
    with refused(65, str(path), "more than 100000 objects"):
        open_shards([str(path)])


def test_s10_attributes_are_not_looked_at(tmp_path, monkeypatch):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["X"] = hostile.ROWS
        for i in range(3000):
            file["X"].attrs[f"a{i}"] = "x" * 1000

    def none(*arguments, **named):
        raise AssertionError("attributes were enumerated")

    for name in ("open_by_idx", "get_num_attrs", "iterate"):
        monkeypatch.setattr(h5py.h5a, name, none, raising=False)
    with h5py.File(path) as file:
        assert describe.describe(file, None)[0]["columns"] is None
    assert open_shards([str(path)])[0].shape == (6, 2)


def test_too_many_chunks_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(layouts, "MOST_CHUNKS", 9)
    for n, fits in ((9, True), (10, False)):
        path = write_shard(tmp_path / "x.h5", numbered(n), chunks=(1, 2))
        with h5py.File(path) as file:
            if fits:
                describe.describe(file, None)
                continue
            with pytest.raises(find.Refused, match="10 chunks, expected 9 at most"):
                describe.describe(file, None)


def test_of_too_many_riders_the_first_ones_ride(tmp_path, monkeypatch):
    monkeypatch.setattr(riders, "MOST_RIDERS", 3)
    path = write_shard(tmp_path / "x.h5", numbered(2), riders={f"r{i}": range(2) for i in range(4)})
    with h5py.File(path) as file:
        facts, _ = describe.describe(file, None)
    assert [rider["name"] for rider in facts["riders"]] == ["r0", "r1", "r2"]
    assert facts["left_out"] == [["r3", "more than 3 ride along already", True]]


# -- what it is made to say ------------------------------------------------------------------------------------------


@pytest.fixture
def honest(tmp_path):
    """What is said of a shard that has everything, for a test to forge."""
    path = write_shard(
        tmp_path / "x.h5", numbered(6), chunks=(2, 2), compression="gzip", shuffle=True, riders={"y": range(6)}
    )
    with h5py.File(path, "a") as file:
        file["X"].attrs["columns"] = ["a", "b"]
        file["__categories/y"] = np.array(list("uvwxyz"), object)
    with h5py.File(path) as file:
        facts, arrays = describe.describe(file, None)
    return path, json.loads(json.dumps(facts)), arrays


def forged(monkeypatch, path, facts, arrays):
    monkeypatch.setattr("pipeline.shards.vet.ask", lambda *arguments: (facts, arrays))
    return vet(Path(path))


def test_the_answer_that_is_forged_below_is_taken_when_it_is_not(honest, monkeypatch):
    shard = forged(monkeypatch, *honest)
    assert (shard.shape, names(shard), shard.columns) == ((6, 2), ("y",), ("a", "b"))


NONSENSE = [
    None,
    True,
    -1,
    2**63,
    2**64,
    1.5,
    "x",
    "\x1b\n",
    [],
    {},
    [[]],
    [None],
    [-1],
    [2**64],
    [1.5],
    ["x"],
    {"a": 1},
]


def places(node, where=()):
    """Every place in a tree of lists and dicts."""
    yield where
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*where, key))


def at(node, where, value):
    """A copy of a tree with another value at one place."""
    if not where:
        return value
    copied = dict(node) if isinstance(node, dict) else list(node)
    copied[where[0]] = at(copied[where[0]], where[1:], value)
    return copied


def test_any_nonsense_at_any_place_of_the_answer_is_refused_or_harmless(honest, monkeypatch):
    """Nothing but a `DataError` comes of it, when it is vetted and when it is read."""
    path, facts, arrays = honest
    sentences, n_taken = [], 0
    for where in places(facts):
        for value in NONSENSE:
            try:
                shard = forged(monkeypatch, path, at(facts, where, value), arrays)
            except DataError as error:
                sentences.append(str(error))
            else:
                n_taken += 1
                whole = Block(shard, 0, shard.n_rows)
                with suppress(DataError):
                    read(whole), read_riders(whole)
    assert all(map(str.isprintable, sentences))
    assert len(sentences) > n_taken > 0


@pytest.mark.parametrize(
    ("row", "value", "phrase"),
    [
        (0, 0, "values lie at bytes 0:"),
        (0, 10**6, "values lie at bytes 1000000:"),
        (0, 2**63 - 1, "values lie at bytes 9223372036854775807:"),
        (0, -1, "makes no sense"),
        (1, 0, None),
        (1, 2**63 - 1, "values lie at bytes"),
        (1, -1, "makes no sense"),
        (2, -1, "makes no sense"),
        (2, 2**32, "makes no sense"),
        (2, 3, "bytes in the file, expected about 32"),
    ],
)
def test_s9_a_chunk_that_is_said_to_lie_elsewhere_is_refused(honest, monkeypatch, row, value, phrase):
    path, facts, arrays = honest
    index = arrays[0].copy()
    index[row, 1] = value
    if phrase is None:
        forged(monkeypatch, path, facts, [index, *arrays[1:]])
        return
    with refused(65, path, phrase):
        forged(monkeypatch, path, facts, [index, *arrays[1:]])


def test_s9_chunks_that_overlap_are_refused(honest, monkeypatch):
    path, facts, arrays = honest
    index = arrays[0].copy()
    index[0, 1] = index[0, 0] + 1
    with refused(65, path, f"values overlap at byte {index[0, 1]}"):
        forged(monkeypatch, path, facts, [index, *arrays[1:]])


@pytest.mark.parametrize(
    "arrays", [[], [np.zeros((3, 2), np.int64)], [np.zeros((3, 3), np.uint8)], [np.zeros(9, np.int64)]]
)
def test_arrays_of_another_shape_are_refused(honest, monkeypatch, arrays):
    path, facts, _ = honest
    with refused(65, path, "makes no sense"):
        forged(monkeypatch, path, facts, arrays)


def test_s7_what_unfolds_to_more_than_deflate_could_is_refused(honest, monkeypatch):
    path, facts, _ = honest
    n = 2**12
    rows = {**facts["rows"][0], "shape": [n, 2**14], "chunks": [1, 2**14]}
    index = np.stack([100 + np.arange(n), np.ones(n), np.zeros(n)]).astype(np.int64)
    os.truncate(path, 2**20)
    with refused(65, path, f"{n} bytes unfold to {n * 2**17}", "1100 times as many at most"):
        forged(monkeypatch, path, {**facts, "rows": [rows], "riders": []}, [index])
