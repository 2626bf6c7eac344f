"""Files understood by libhdf5 in a child process."""
