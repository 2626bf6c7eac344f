"""Tests of publication: one rename publishes a finished run, and its files are found by any name and in any copy."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from shardpress.encoding import index as index_module
from shardpress.features import open_features
from shardpress.formats import seal
from shardpress.output import publication as module
from shardpress.output.ledger import Ledger
from shardpress.output.lock import locked, objection
from shardpress.output.publication import misplaced_names
from shardpress.output.records import OUTPUT, Entry, fault_of, read_manifest
from tests.support.faulty import BrokenDisk, RecordingDisk
from tests.support.helpers import refused
from tests.support.ledgers import HEX, NOW, commit, contents, fill
from tests.support.parts import feature_rows, part, shapes_in


def publish(ledger: Ledger, *names: str) -> list[Entry]:
    """Publish files with these names; the content of each is its name."""
    publication = ledger.publication()
    entries = [publication.write(name, name.encode()) for name in names]
    ledger.finish({}, {"parts": [], "files": [vars(entry) for entry in entries]}, publication)
    return entries


def folders(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "published").iterdir() if not path.is_symlink())


def test_plain_names_link_to_the_files_of_the_manifest(ledger: Ledger) -> None:
    entries = publish(ledger, "model.h5", "index.h5", "report.json")
    for name, entry in zip(("model.h5", "index.h5", "report.json"), entries, strict=True):
        assert (ledger.directory / name).samefile(ledger.directory / entry.file)
        assert (ledger.directory / name).read_bytes() == name.encode()
        assert fault_of(ledger.directory, entry) is None
    assert misplaced_names(ledger.directory, read_manifest(ledger.directory)) == []


def test_nothing_is_visible_before_the_last_rename(ledger: Ledger) -> None:
    publication = ledger.publication()
    publication.write("model.h5", b"model")
    assert not (ledger.directory / "model.h5").exists()
    with refused(66, f"file={ledger.directory / 'manifest.json'}"):
        read_manifest(ledger.directory)


def test_all_files_are_synced_before_publication(tmp_path: Path) -> None:
    recording = RecordingDisk()
    with locked(tmp_path, recording) as ledger:
        recording.calls.clear()
        publish(ledger, "model.h5", "index.h5")
    (folder,) = folders(tmp_path)
    switch = recording.calls.index(("replace", tmp_path / "published/current"))
    before = recording.calls[:switch]
    assert recording.calls[switch + 1] == ("sync_directory", tmp_path / "published")
    assert ("sync_directory", tmp_path / "published" / folder) in before
    assert [name for name, _ in before].count("sync") == 3
    last_link = max(i for i, call in enumerate(before) if call == ("replace", tmp_path / "model.h5"))
    assert ("sync_directory", tmp_path) in before[last_link:]


def test_files_missing_from_the_next_publication_are_removed(ledger: Ledger) -> None:
    publish(ledger, "model.h5", "bad_rows.jsonl")
    first = folders(ledger.directory)
    publish(ledger, "model.h5")
    assert not (ledger.directory / "bad_rows.jsonl").exists()
    ledger.sweep(NOW)
    assert not os.path.lexists(ledger.directory / "bad_rows.jsonl")
    assert len(folders(ledger.directory)) == 1
    assert folders(ledger.directory) != first


def test_unfinished_publications_are_swept(ledger: Ledger) -> None:
    publish(ledger, "model.h5")
    folders_before = folders(ledger.directory)
    ledger.publication().write("model.h5", b"half")
    fill(ledger.directory, f"published/current.{HEX}.writing")
    assert len(folders(ledger.directory)) == 3
    ledger.sweep()
    assert folders(ledger.directory) == folders_before
    assert (ledger.directory / "model.h5").read_bytes() == b"model.h5"


def test_foreign_files_in_publications_are_kept(ledger: Ledger) -> None:
    foreign = ["published/notes.txt", f"published/{HEX}/thesis.tex", "published/mine/model.h5", f"published/{HEX}0"]
    fill(ledger.directory, *foreign, f"published/{HEX}/model.h5", f"published/{HEX}/model.h5.{HEX}.writing")
    ledger.sweep()
    ledger.sweep(NOW)
    ledger.forget()
    found = {str(path.relative_to(ledger.directory)) for path in ledger.directory.rglob("*") if path.is_file()}
    assert found - {".lock", ".shardpress"} == set(foreign)


def test_sweeping_does_not_follow_a_link_to_a_publication(ledger: Ledger, tmp_path: Path) -> None:
    victim = fill(tmp_path / "victim", "model.h5", "manifest.json")
    publish(ledger, "model.h5")
    (ledger.directory / "published" / HEX).symlink_to(tmp_path / "victim")
    ledger.sweep(NOW)
    ledger.forget()
    assert {path.name for path in (tmp_path / "victim").iterdir()} == set(victim)


@pytest.mark.parametrize("target_exists", [True, False], ids=["elsewhere", "dangling"])
def test_a_link_in_place_of_the_publications_is_refused(tmp_path: Path, target_exists: bool) -> None:
    with locked(tmp_path / "out"):
        pass
    if target_exists:
        fill(tmp_path / "victim", f"{HEX}/model.h5")
    (tmp_path / "out" / "published").symlink_to(tmp_path / "victim")
    with refused(73, "published", "link"), locked(tmp_path / "out"):
        pytest.fail("the directory was locked")
    if target_exists:
        assert (tmp_path / "victim" / HEX / "model.h5").exists()


@pytest.mark.parametrize(
    "name",
    ["published/current/model.h5", f"published/{HEX}/passwd", "published/x/model.h5", f"./published/{HEX}/../model.h5"],
)
def test_a_manifest_cannot_name_files_of_publications(ledger: Ledger, name: str) -> None:
    fill(ledger.directory, "manifest.json")
    (ledger.directory / "manifest.json").write_bytes(seal(OUTPUT, {"files": [{"file": name}]}))
    with refused(77, f"file={ledger.directory / 'manifest.json'}", name):
        read_manifest(ledger.directory)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def test_the_manifest_is_written_last_without_symbolic_links(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    module._warned.clear()
    broken = BrokenDisk(code, "symlink")
    with locked(tmp_path, broken) as ledger:
        for _ in range(2):
            publish(ledger, "model.h5", "index.h5")
            ledger.sweep(NOW)
            assert [entry["file"] for entry in read_manifest(tmp_path)["files"]] == ["model.h5", "index.h5"]
            assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
        assert folders(tmp_path) == []
        renamed = [Path(str(path)).name for name, path in broken.calls if name == "replace"]
        assert renamed[-1] == "manifest.json"
        ledger.forget()
        assert not (tmp_path / "model.h5").exists()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


# -- other names, and copies ---------------------------------------------------------------------------------------

N_PARTS = 5


def run(directory: Path) -> np.ndarray:
    """Write a finished output of five parts, whose index is a view of views; return its features."""
    with locked(directory) as ledger:
        files = []
        for i in range(N_PARTS):
            data = part(3, 3 * i, {"y": np.arange(3 * i, 3 * i + 3)})
            files.append(commit(ledger, f"part-{i:06d}-000000000000", data=data).entry.file)
        publication = ledger.publication()

        def viewed(file: str) -> tuple[str, dict[str, index_module.Shape]]:
            return file, shapes_in(directory / file)

        index_parts = index_module.index_files(files, viewed, {}, {})
        entries = [publication.write(name, data) for name, data in index_parts]
        parts = [{"file": file, "n_rows": 3, "n_bytes": 1, "blake3": ""} for file in files]
        ledger.finish({}, {"parts": parts, "files": [vars(entry) for entry in entries]}, publication)
    return np.asarray(feature_rows(3 * N_PARTS))


def by_tar(source: Path, target: Path) -> None:
    target.mkdir()
    subprocess.run(f"tar -C {source} -c . | tar -C {target} -x", shell=True, check=True)


COPIES: dict[str, Callable[[Path, Path], object]] = {
    "cp -r": lambda source, target: subprocess.run(["cp", "-r", source, target], check=True),
    "cp -rL": lambda source, target: subprocess.run(["cp", "-rL", source, target], check=True),
    "mv": lambda source, target: source.rename(target),
    "tar": by_tar,
    "copytree": shutil.copytree,
}


def features_in(index: Path | str) -> np.ndarray:
    with h5py.File(index) as file:
        return np.asarray(file["features"][()])


@pytest.mark.process
@pytest.mark.parametrize("is_nested", [False, True], ids=["view", "view of views"])
@pytest.mark.parametrize("copy_command", COPIES)
def test_an_index_works_in_every_kind_of_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy_command: str, is_nested: bool
) -> None:
    if is_nested:
        monkeypatch.setattr(index_module, "_MOST_PARTS", 2)
    expected = run(tmp_path / "out")
    copy = tmp_path / "elsewhere" / "copy"
    copy.parent.mkdir()
    COPIES[copy_command](tmp_path / "out", copy)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    (tmp_path / "link.h5").symlink_to(copy / "index.h5")
    (tmp_path / "folder").symlink_to(copy)
    monkeypatch.chdir(copy / "parts")
    names = [copy / "index.h5", "../index.h5", (copy / "index.h5").resolve(), tmp_path / "folder" / "index.h5"]
    for name in [*names, tmp_path / "link.h5"]:
        np.testing.assert_array_equal(features_in(name), expected, str(name))
    np.testing.assert_array_equal(open_features(copy).features, expected)
    np.testing.assert_array_equal(open_features("../index.h5").features, expected)
    manifest = read_manifest(copy)
    follows_links = copy_command in ("cp -rL", "copytree")
    assert misplaced_names(copy, manifest) == (["index.h5"] if follows_links else [])
    assert all(fault_of(copy, Entry(**line)) is None for line in manifest["files"])


def test_a_copy_without_links_is_refused(ledger: Ledger) -> None:
    publish(ledger, "model.h5")
    for path in [path for path in ledger.directory.rglob("*") if path.is_symlink()]:
        path.unlink()
    with refused(66, "manifest.json", "links"):
        open_features(ledger.directory)


@pytest.mark.process
def test_a_copy_that_followed_links_is_not_changed(tmp_path: Path) -> None:
    with locked(tmp_path / "out") as ledger:
        publish(ledger, "model.h5")
    COPIES["cp -rL"](tmp_path / "out", tmp_path / "copy")
    before = contents(tmp_path / "copy")
    with refused(73, "copy", "published/current", "cp -r"), locked(tmp_path / "copy"):
        pytest.fail("the directory was locked")
    error = objection(tmp_path / "copy")
    assert "published/current" in str(error)
    assert contents(tmp_path / "copy") == before


def test_an_output_without_links_stays_without_links(tmp_path: Path) -> None:
    """It was moved to a file system with links."""
    with locked(tmp_path, BrokenDisk(errno.EPERM, "symlink")) as ledger:
        publish(ledger, "model.h5")
    with locked(tmp_path) as ledger:
        publish(ledger, "model.h5", "index.h5")
        assert [entry["file"] for entry in read_manifest(tmp_path)["files"]] == ["model.h5", "index.h5"]
        ledger.forget()
        publish(ledger, "model.h5")
    assert (tmp_path / "model.h5").is_symlink()


def test_a_replaced_manifest_is_never_mixed_with_new_files(ledger: Ledger) -> None:
    """A user who edits the manifest replaces its link by a file, which is damaged."""
    publish(ledger, "model.h5")
    (ledger.directory / "manifest.json").unlink()
    fill(ledger.directory, "manifest.json")
    (entry,) = publish(ledger, "model.h5")
    assert (ledger.directory / "model.h5").samefile(ledger.directory / entry.file)
    ledger.sweep(NOW)
    assert len(folders(ledger.directory)) == 1
    assert misplaced_names(ledger.directory, read_manifest(ledger.directory)) == []


def test_removing_manifest_json_makes_a_run_unfinished(ledger: Ledger) -> None:
    """A user who removes the manifest wants the run to count as unfinished."""
    publish(ledger, "model.h5")
    (ledger.directory / "manifest.json").unlink()
    with refused(66, f"file={ledger.directory / 'manifest.json'}"):
        read_manifest(ledger.directory)
    ledger.forget()
    assert folders(ledger.directory) == []
    assert ledger.manifest() is None
