"""Files understood in Python, without libhdf5."""
