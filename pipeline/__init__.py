"""shardpress: HDF5 shards in, compact autoencoder features out. Its wings stand in the README in the data's order."""

import os as _os

# Before anybody loads libhdf5: its environment could make it load plugins, other drivers, or files from other places.
for _name in [_name for _name in _os.environ if _name.startswith("HDF5_")]:
    del _os.environ[_name]
_os.environ["HDF5_PLUGIN_PRELOAD"] = "::"  # which turns plugins off
