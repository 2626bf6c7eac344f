"""Extract compact features from HDF5 shards with an autoencoder.

    from shardpress import TiedAutoencoder, load_model, open_features

docs/architecture.md describes the packages.
"""

import os as _os

# Environment variables can make libhdf5 load plugins, other drivers, or files from other directories. Remove them
# before libhdf5 is loaded.
for _name in [_name for _name in _os.environ if _name.startswith("HDF5_")]:
    del _os.environ[_name]
_os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # turns plugins off

TYPE_CHECKING = False  # type checkers recognize this name; `typing` takes longer to import than this whole module
if TYPE_CHECKING:
    from shardpress.interop.estimator import TiedAutoencoder as TiedAutoencoder
    from shardpress.result.features import open_features as open_features
    from shardpress.result.finished import load_model as load_model
else:
    # The public API is loaded on first use, so that the command line and child processes load neither Dask nor h5py.
    _PUBLIC = {
        "open_features": "shardpress.result.features",
        "load_model": "shardpress.result.finished",
        "TiedAutoencoder": "shardpress.interop.estimator",
    }

    def __getattr__(name):
        if name == "__version__":
            from importlib.metadata import version

            return version("shardpress")
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)

    def __dir__():
        return [*globals(), *_PUBLIC, "__version__"]
