"""Fixtures for several test files."""

import pytest


@pytest.fixture
def file(tmp_path):
    """Return a function that writes a configuration file and returns the flags that name it."""

    def write(text):
        (tmp_path / "settings.yaml").write_text(text)
        return ["--config", str(tmp_path / "settings.yaml")]

    return write
