"""Test of docs/Dockerfile without building an image; `make image-check` runs the steps of the file."""

from __future__ import annotations

from pathlib import Path

from scripts.images.image import DOCKERFILE, Image, steps


def test_copied_files_exist_and_are_sufficient(tmp_path: Path) -> None:
    image = Image(tmp_path)
    for name, arguments in steps(DOCKERFILE.read_text()):
        if name == "COPY":
            image.do(name, arguments)
    source = tmp_path / "usr/src/shardpress"
    for name in ("setup.py", "README.md", "scripts/install_pygpu.sh", "kernels/shardpress_kernels/native/step.c"):
        assert (source / name).is_file(), name
