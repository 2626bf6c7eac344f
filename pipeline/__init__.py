"""shardpress: HDF5 shards in, compact autoencoder features out. Its wings stand in the README in the data's order."""

import os as _os

# Before anybody loads libhdf5: its environment could make it load plugins, other drivers, or files from other places.
for _name in [_name for _name in _os.environ if _name.startswith("HDF5_")]:
    del _os.environ[_name]
_os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # which turns plugins off

TYPE_CHECKING = False  # as type checkers know it; `typing` would take longer to load than all of this
if TYPE_CHECKING:
    from pipeline.features import open_features as open_features
    from pipeline.interop.estimator import TiedAutoencoder as TiedAutoencoder
    from pipeline.model import load_model as load_model
else:
    # What downstream needs, loaded when it is asked for: the command line and the child that looks into files load
    # neither Dask nor h5py for it.
    _DOWNSTREAM = {
        "open_features": "pipeline.features",
        "load_model": "pipeline.model",
        "TiedAutoencoder": "pipeline.interop.estimator",
    }

    def __getattr__(name):
        if name not in _DOWNSTREAM:
            # Whoever expects a file of their own may have got this package, which `import shardpress` has loaded.
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}: it is shardpress's, in {__file__}")
        from importlib import import_module

        return getattr(import_module(_DOWNSTREAM[name]), name)
