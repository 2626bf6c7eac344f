"""Reading of files by libhdf5 in a child process."""
