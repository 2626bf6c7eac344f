"""`shardpress export`: write the encoder for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.errors import shown

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Write a model's encoder for other runtimes: rows as they lie in the shards in, features out.

    shardpress export --onnx encoder.onnx                     of the run in features/
    shardpress export model.h5 --onnx encoder.onnx            of a model alone

For NumPy alone a run writes encoder.npz beside the features; the README has the lines that read it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "output", nargs="?", default="features", help="directory of a finished run, or a model.h5 (default: features)"
    )
    parser.add_argument("--onnx", metavar="FILE", required=True, help="for ONNX runtimes (extra onnx)")


def run(options: argparse.Namespace) -> int:
    """Write the file and print how to use it."""
    from pipeline.interop.onnx import encoder_onnx, input_dtype
    from pipeline.model import load_model
    from pipeline.output.disk import Disk, publish

    path = Path(options.onnx)
    model = load_model(options.output)
    data = encoder_onnx(model)
    publish(Disk(), path, data)
    print(
        f"{shown(path)}: {len(data)} bytes; rows (n, {model.n_inputs}) {input_dtype(model)} in, "
        f"features (n, {model.n_features}) float32 out. "
        f'Run it with onnxruntime.InferenceSession("{shown(path)}").run(["features"], {{"rows": rows}}).'
    )
    return 0
