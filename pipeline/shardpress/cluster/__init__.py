"""Execution of tasks by threads of this process, by local worker processes, or by a Dask cluster."""
