"""Tests of docs/Dockerfile without building an image; `make image-check` runs the steps of the file."""

from __future__ import annotations

from pathlib import Path

from scripts.images.image import DOCKERFILE, REPOSITORY, Image, steps

STEPS = list(steps(DOCKERFILE.read_text()))


def test_copied_files_exist_and_are_sufficient(tmp_path: Path) -> None:
    image = Image(tmp_path)
    for name, arguments in STEPS:
        if name == "COPY":
            image.do(name, arguments)
    source = tmp_path / "usr/src/shardpress"
    for path in (
        "setup.py",
        "README.md",
        "scripts/install_pygpu.sh",
        "pipeline/shardpress/gpu/driver.py",
        "kernels/shardpress_kernels/native/step.c",
    ):
        assert (source / path).read_bytes() == (REPOSITORY / path).read_bytes()


def test_image_is_set_up_for_a_card() -> None:
    every = {name: [arguments for each, arguments in STEPS if each == name] for name, _ in STEPS}
    assert every["FROM"] == ["debian:13"]
    assert any(arguments.startswith("/opt/shardpress/bin/shardpress setup-gpu ") for arguments in every["RUN"])
    assert "THEANO_FLAGS=device=cuda" in every["ENV"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in every["ENV"]
    assert every["ENTRYPOINT"] == ['["shardpress"]']
