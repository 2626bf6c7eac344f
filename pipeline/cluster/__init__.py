"""Tasks on threads of this process, on local worker processes, or on a Dask cluster."""
