"""The ledger: a file is there whole or not at all, and nothing of anybody else's is ever touched."""

import builtins
import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import ledger
from pipeline.ledger import MANIFEST, clear, publish, publish_json, read_manifest
from tests.helpers import as_nobody, refused

FAULTS = {errno.ENOSPC: "Free some space", errno.EDQUOT: "Free some space", errno.EIO: "Check the disk"}


def claim(directory, overwrite):
    """Claim a directory and let go of it at once."""
    with ledger.claim(directory, overwrite):
        pass


def contents(folder):
    """What every file below a folder holds, our marker and the lock aside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".shardpress", ".lock")
    }


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.fixture
def claimed(tmp_path):
    """An output directory of ours."""
    claim(tmp_path / "out", overwrite=False)
    return tmp_path / "out"


# -- publish -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"x", b"x" * 10**6], ids=len)
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_published_file_is_whole_and_alone(tmp_path, data, before):
    path = tmp_path / "part.h5"
    if before is not None:
        path.write_bytes(before)
    publish(path, data)
    assert contents(tmp_path) == {"part.h5": data}


class FullFile:
    """A file that takes half of what is written."""

    def __init__(self, file, code):
        self._file, self._code = file, code

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def write(self, data):
        self._file.write(data[: len(data) // 2])
        raise OSError(self._code, os.strerror(self._code))


def break_write(monkeypatch, code):
    opened = builtins.open
    monkeypatch.setattr(builtins, "open", lambda path, mode="r": FullFile(opened(path, mode), code))


def break_call(name):
    def break_it(monkeypatch, code):
        def fail(*_arguments):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, name, fail)

    return break_it


@pytest.mark.parametrize("code", FAULTS, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    "fault", [break_write, break_call("fsync"), break_call("replace")], ids=["write", "fsync", "replace"]
)
@pytest.mark.parametrize("before", [{}, {"part.h5": b"old"}], ids=["new", "old"])
def test_a_write_that_fails_leaves_what_was_there_and_no_more(tmp_path, monkeypatch, fault, code, before):
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)
    with monkeypatch.context() as context:
        fault(context, code)
        with refused(74, str(tmp_path / "part.h5"), os.strerror(code), "while writing 100 bytes", FAULTS[code]):
            publish(tmp_path / "part.h5", b"x" * 100)
    assert contents(tmp_path) == before


def test_an_interrupted_write_leaves_nothing_and_passes_the_interrupt_on(tmp_path, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish(tmp_path / "part.h5", b"x")
    assert contents(tmp_path) == {}


def test_data_is_on_the_disk_before_it_has_its_name_and_the_name_is_too(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, call=call: (calls.append(name), call(*a)))
    publish(tmp_path / "part.h5", b"x")
    assert calls == ["fsync", "replace", "fsync"]


def test_a_folder_that_is_not_there_is_an_error_of_writing(tmp_path):
    with refused(74, str(tmp_path / "no" / "part.h5"), "No such file"):
        publish(tmp_path / "no" / "part.h5", b"x")


# -- claim -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new", "new/and/deep", "with space\nand größe"])
def test_a_new_directory_is_made_with_its_parents(tmp_path, name):
    claim(tmp_path / name, overwrite=False)
    assert (tmp_path / name / "parts").is_dir()


def test_an_empty_directory_is_taken(tmp_path):
    claim(tmp_path, overwrite=False)
    assert (tmp_path / "parts").is_dir()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_with_files_of_others_is_refused_and_left_alone(tmp_path, overwrite):
    fill(tmp_path, "thesis.tex", "parts/part-00000.h5", MANIFEST)
    before = contents(tmp_path)
    with refused(73, f"output={tmp_path}", "files that are not of shardpress", "--output"):
        claim(tmp_path, overwrite)
    assert contents(tmp_path) == before


def test_finished_results_are_refused_and_left_alone(claimed):
    fill(claimed, "parts/part-00000.h5", "index.h5", "model.h5")
    ledger.finish(claimed, {"parts": []})
    before = contents(claimed)
    with refused(73, f"output={claimed}", "results of another run", "--overwrite"):
        claim(claimed, overwrite=False)
    assert contents(claimed) == before


def test_overwriting_takes_our_files_away_and_no_others(claimed):
    ledger.finish(claimed, {"parts": []})
    fill(claimed, "parts/part-00000.h5", "parts/part-12345.h5", "index.h5", "model.h5", "encoder.npz", "report.json")
    fill(claimed, "notes.txt", "parts/labels.csv", "more/model.h5")
    claim(claimed, overwrite=True)
    assert MANIFEST in contents(claimed), "what was there stays until there is something to put in its place"
    clear(claimed)
    assert set(contents(claimed)) == {"notes.txt", "parts/labels.csv", "more/model.h5"}


@pytest.mark.parametrize("name", ["novel.writing", "more/novel.writing", "parts/part-of-mine.h5"])
def test_overwriting_leaves_files_whose_names_resemble_ours(claimed, name):
    ledger.finish(claimed, {"parts": []})
    fill(claimed, name)
    claim(claimed, overwrite=True)
    clear(claimed)
    assert set(contents(claimed)) == {name}


def test_an_unfinished_run_makes_room_by_itself(claimed):
    """A run that was killed left parts and a half-written file; the next one starts afresh."""
    fill(claimed, "parts/part-00000.h5", f"parts/part-00001.h5.{'0' * 32}.writing", "model.h5")
    claim(claimed, overwrite=False)
    clear(claimed)
    assert contents(claimed) == {}


def test_the_manifest_goes_first(claimed, monkeypatch):
    """A reader that meets a run being replaced finds an unfinished run, never a mixture."""
    ledger.finish(claimed, {"parts": []})
    fill(claimed, "parts/part-00000.h5", "model.h5")
    with monkeypatch.context() as context:
        gone = []
        unlink = Path.unlink
        context.setattr(Path, "unlink", lambda path, **how: (gone.append(path.name), unlink(path, **how)))
        clear(claimed)
    assert gone[0] == MANIFEST
    assert len(gone) == 3


@pytest.mark.parametrize("name", ["file", "file/below", "dangling"])
def test_what_cannot_be_a_directory_is_refused(tmp_path, name):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "dangling").symlink_to("nowhere")
    with refused(73, f"output={tmp_path / name}", "--output"):
        claim(tmp_path / name, overwrite=True)
    assert contents(tmp_path) == {"file": b"x"}


@pytest.mark.parametrize("name", ["", "below"])
def test_a_directory_that_may_not_be_written_is_refused(open_path, name):
    folder = open_path / "closed"
    folder.mkdir(mode=0o555)
    exit_code, sentence = as_nobody(lambda: claim(folder / name, overwrite=False))
    assert exit_code in (73, 77), sentence
    assert f"output={folder / name}" in sentence
    assert "--output" in sentence


def test_a_full_disk_is_an_error_before_the_work_starts(tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        break_call("fsync")(context, errno.ENOSPC)
        with refused(73, f"output={tmp_path / 'out'}", "No space left"):
            claim(tmp_path / "out", overwrite=False)


# -- the lock ----------------------------------------------------------------------------------------------------


def test_a_second_run_is_told_who_is_at_work(tmp_path):
    found = refused(75, f"output={tmp_path}", f"pid {os.getpid()} on ", "since 2", "same command again")
    with ledger.claim(tmp_path, overwrite=False), found:
        claim(tmp_path, overwrite=True)
    claim(tmp_path, overwrite=False)


HOLDER = """
import sys
from pathlib import Path
from pipeline import ledger
with ledger.claim(Path(sys.argv[1]), overwrite=False):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_run_leaves_no_lock_behind(tmp_path):
    """The kernel frees it: nobody has to remove a file after a crash."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], **pipes) as holder:
        assert holder.stdout.readline() == b"held\n"
        with refused(75, f"pid {holder.pid} on "):
            claim(tmp_path, overwrite=False)
        holder.kill()
    claim(tmp_path, overwrite=False)


def test_results_that_appear_while_waiting_are_not_replaced(claimed):
    """Two runs start on a new directory; the second gets the lock when the first has finished."""
    ledger.finish(claimed, {"parts": []})
    with refused(73, "results of another run"):
        claim(claimed, overwrite=False)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_a_file_system_without_locks_is_refused(tmp_path, monkeypatch, code):
    def fail(*_arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", fail)
    with refused(75, "cannot be locked", os.strerror(code)):
        claim(tmp_path, overwrite=False)


def test_a_link_in_the_locks_place_is_not_followed(claimed, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (claimed / ".lock").unlink()
    (claimed / ".lock").symlink_to(victim)
    with refused(73, f"output={claimed}"):
        claim(claimed, overwrite=False)
    assert victim.read_bytes() == b"precious"


# -- manifest ----------------------------------------------------------------------------------------------------


def test_a_manifest_comes_back_as_it_was(claimed):
    ledger.finish(claimed, {"parts": [{"file": "größe \udcff"}], "n_rows": 3})
    found = read_manifest(claimed)
    assert found == {"format": "shardpress-output/1", "parts": [{"file": "größe \udcff"}], "n_rows": 3}


def test_without_a_manifest_a_run_is_not_finished(claimed, tmp_path):
    for folder in (claimed, tmp_path / "nowhere"):
        with refused(66, str(folder / MANIFEST), "expected the output directory of a finished run"):
            read_manifest(folder)


@pytest.mark.parametrize(
    ("content", "phrase"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"", "not JSON"),
        (b"[]", "expected format"),
        (json.dumps({"format": "shardpress-output/2"}).encode(), "expected format 'shardpress-output/1'"),
    ],
)
def test_a_manifest_of_another_format_is_refused(claimed, content, phrase):
    (claimed / MANIFEST).write_bytes(content)
    with refused(65, MANIFEST, phrase):
        read_manifest(claimed)


def test_json_is_for_people_too(tmp_path):
    publish_json(tmp_path / "x.json", {"a": 1, "b": [2]})
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == {"a": 1, "b": [2]}
    assert text.endswith("\n")
    assert len(text.splitlines()) > 2
