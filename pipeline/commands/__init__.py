"""The commands `shardpress NAME`, one module each: they parse flags, print a result and return an exit code."""
