"""Tools of all packages: errors, log, progress, signals, text, formats and child processes."""
