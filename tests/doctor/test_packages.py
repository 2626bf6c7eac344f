"""Tests of the versions of installed packages."""

from pathlib import Path

import pytest

from shardpress.doctor.packages import version_of


@pytest.mark.parametrize("file", ["a-1.2.dist-info/METADATA", "a.egg-info/PKG-INFO", "a-1.2.egg-info"])
def test_the_version_is_found_however_a_package_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("Metadata-Version: 2.1\nName: a\nVersion: 1.2\n\nVersion: of the description\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert version_of("a") == "1.2"
    assert version_of("b") == ""
