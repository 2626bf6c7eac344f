"""Access to one untrusted HDF5 file; this package knows nothing of shards."""
