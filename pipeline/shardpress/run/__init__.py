"""A run: binds the stages to settings, an output directory and a device."""
