"""`shardpress export`: write the encoder of a model for other runtimes."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.errors import printable

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Write the encoder of a model for other runtimes. It takes unscaled rows, like those in shards.

    shardpress export --onnx encoder.onnx                     the model of the run in features/
    shardpress export model.h5 --onnx encoder.onnx            a model file

For NumPy, a run writes encoder.npz to its output directory; the README shows how to use it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "output",
        nargs="?",
        default="features",
        help="Output directory of a finished run, or a model.h5. Default: features.",
    )
    parser.add_argument(
        "--onnx",
        metavar="FILE",
        required=True,
        help="Write an ONNX model to this file; needs pip install 'shardpress[onnx]'.",
    )


def run(options: argparse.Namespace) -> int:
    """Write the file, and print how to use it."""
    from pipeline.interop.onnx import encoder_onnx, input_dtype
    from pipeline.model import load_model
    from pipeline.output.disk import Disk, publish

    path = Path(options.onnx)
    model = load_model(options.output)
    data = encoder_onnx(model)
    publish(Disk(), path, data)
    print(
        f"Wrote {printable(path)} ({len(data)} bytes). Input: rows (n, {model.n_inputs}) {input_dtype(model)}. "
        f"Output: features (n, {model.n_features}) float32. "
        f'Run it with onnxruntime.InferenceSession("{printable(path)}").run(["features"], {{"rows": rows}}).'
    )
    return 0
