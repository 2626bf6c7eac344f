"""Workers on this machine, made for a run."""
