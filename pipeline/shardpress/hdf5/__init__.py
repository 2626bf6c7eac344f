"""Access to one untrusted HDF5 file. This package does not depend on the `shards` package."""
