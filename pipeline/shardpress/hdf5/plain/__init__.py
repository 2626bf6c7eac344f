"""Reading of plain files in pure Python, without libhdf5."""
