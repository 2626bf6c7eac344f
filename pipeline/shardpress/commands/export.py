"""`shardpress export`: write the encoder of a model, or the features of a run, for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from shardpress.errors import printable

__all__ = ["DESCRIPTION", "configure", "run"]

DESCRIPTION = """Write the encoder of a model, or the features of a run, for other programs.

    shardpress export --onnx encoder.onnx                     the encoder of the run in features/
    shardpress export model.h5 --onnx encoder.onnx            the encoder in a model file
    shardpress export features --obsm features.h5ad           the features, for AnnData and scanpy
    shardpress export features --onnx encoder.onnx --as-of 1  the encoder, followed by a map to generation 1

The encoder takes unscaled rows, like those in shards. For NumPy, a run writes encoder.npz to its output directory, like
--npz without --as-of; the README shows how to use it.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "output",
        nargs="?",
        default="features",
        help="Output directory of a finished run, or a model.h5 (for --onnx and --npz). Default: features.",
    )
    formats = parser.add_mutually_exclusive_group(required=True)
    formats.add_argument(
        "--onnx",
        metavar="FILE",
        help="Write an ONNX model to this file; needs pip install 'shardpress[onnx]'.",
    )
    formats.add_argument(
        "--npz",
        metavar="FILE",
        help="Write the encoder for NumPy, like encoder.npz, to this file.",
    )
    formats.add_argument(
        "--obsm",
        metavar="FILE",
        help="Write the features to a new AnnData file, as obsm/X_shardpress with the names of the rows.",
    )
    parser.add_argument(
        "--as-of",
        metavar="N",
        help="Map the features to those of this generation, output directory or map file, as open_features(as_of=N).",
    )


def run(options: argparse.Namespace) -> int:
    """Write the file, and print how to use it."""
    as_of = options.as_of
    if as_of is not None and as_of.isdecimal():
        as_of = int(as_of)
    if options.npz is not None:
        _export_arrays(options.output, Path(options.npz), as_of)
    elif options.onnx is not None:
        _export_encoder(options.output, Path(options.onnx), as_of)
    else:
        _export_features(options.output, Path(options.obsm), as_of)
    return 0


def _export_encoder(output: str, path: Path, as_of: int | str | None) -> None:
    from shardpress.asof import find_map
    from shardpress.interop.onnx import encoder_onnx, input_dtype
    from shardpress.model import load_model
    from shardpress.output.disk import Disk, publish

    model = load_model(output)
    to_other = None if as_of is None else find_map(output, as_of, model.fingerprint)
    n_features = model.n_features if to_other is None else to_other.W.shape[1]
    data = encoder_onnx(model, to_other)
    publish(Disk(), path, data)
    print(
        f"Wrote {printable(path)} ({len(data)} bytes). Input: rows (n, {model.n_columns}) {input_dtype(model)}. "
        f"Output: features (n, {n_features}) float32. "
        f'Run it with onnxruntime.InferenceSession("{printable(path)}").run(["features"], {{"rows": rows}}).'
    )


def _export_arrays(output: str, path: Path, as_of: int | str | None) -> None:
    from shardpress.asof import find_map
    from shardpress.model import load_model
    from shardpress.output.disk import Disk, publish

    model = load_model(output)
    to_other = None if as_of is None else find_map(output, as_of, model.fingerprint)
    data = model.to_npz(None if to_other is None else (to_other.W, to_other.b))
    publish(Disk(), path, data)
    print(f"Wrote {printable(path)} ({len(data)} bytes). The README shows how to use it.")


def _export_features(output: str, path: Path, as_of: int | str | None) -> None:
    from shardpress.features import open_features
    from shardpress.interop.anndata import KEY, export_anndata

    features = open_features(output, as_of=as_of)
    left_out = export_anndata(features, path)
    n_rows, n_features = features.features.shape
    without = ""
    if left_out:
        without = f" Left out, because a column of obs cannot hold their values: {printable(', '.join(left_out))}."
    print(
        f"Wrote {printable(path)}: {n_rows} rows x {n_features} features.{without} Add them to your data with "
        f'adata.obsm["{KEY}"] = anndata.read_h5ad("{printable(path)}")[adata.obs_names].obsm["{KEY}"].'
    )
