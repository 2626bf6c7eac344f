"""Fixtures of several test files."""

import pytest


@pytest.fixture
def file(tmp_path):
    """Write a configuration file and give the flags that name it."""

    def write(text):
        (tmp_path / "settings.yaml").write_text(text)
        return ["--config", str(tmp_path / "settings.yaml")]

    return write
