"""Settings of a run, from defaults, a file, the environment and flags."""
