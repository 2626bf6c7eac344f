"""Access to one untrusted HDF5 file; this package does not depend on shards."""
